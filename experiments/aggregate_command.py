"""``fedrobust aggregate``: one robust aggregate of updates in files, larger than memory or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments import completion


def aggregate(
    updates: Annotated[
        list[Path], typer.Argument(help="Files, one a client: all .safetensors or all .npy.")
    ],
    rule: Annotated[
        str,
        typer.Option(
            help="RULE, as krum:f=2 or nnm+trimmed_mean:f=2.",
            autocompletion=completion.names("rules"),
        ),
    ],
    output: Annotated[Path, typer.Option(help="The aggregate, a file of the same kind.")],
    seed: Annotated[int, typer.Option(help="For rules that draw.")] = 0,
    ray: Annotated[
        str,
        typer.Option(
            help="Read on this Ray cluster: local, auto, HOST:PORT, env; the files lie on each"
            " machine.",
            autocompletion=completion.words("local", "auto", "env"),
        ),
    ] = "",
    workers: Annotated[int, typer.Option(help="Of Ray; 0: one a core.", min=0)] = 0,
) -> None:
    """Aggregate updates, checkpoints or adapters in files; each is read once or twice, never whole.

    Every file holds tensors of the same names, types and shapes. What was found goes to standard
    output as one JSON object.
    """
    told = aggregate_files(updates, rule, output, seed=seed, ray=ray, workers=workers)
    typer.echo(json.dumps(told, ensure_ascii=False))


def aggregate_files(
    paths: list[Path], rule: str, output: Path, *, seed: int = 0, ray: str = "", workers: int = 0
) -> dict[str, Any]:
    """Aggregate files into a file; return what the command prints.

    Parameters
    ----------
    ray
        Address of the cluster whose workers read the files; "": this process does.
    workers
        How many of them; 0: one a core.

    Raises
    ------
    InputError
        For files that are not alike or not readable, and for a rule that cannot be streamed.
    """
    from experiments.update_files import UpdateFiles, check_output, write_update
    from fedrobust.aggregation.streamed import Streamed, aggregate_streamed
    from fedrobust.failures import Refusal
    from fedrobust.flower.rule_spelling import read_rule, rule_name
    from fedrobust.seeds import generator
    from fedrobust.spec import InputError

    spec, pre = read_rule(rule)
    assert not callable(spec), "a rule that was given as text is a spec"
    files, found = UpdateFiles(paths), Streamed()
    check_output(output, files)
    draws = generator(seed, "rule")
    where: dict[str, Any] = {}
    try:
        if ray:
            from experiments.cluster.columns import aggregate_on_ray

            given: dict[str, Any] = {"pre": pre, "generator": draws, "workers": workers}
            found, read, machines = aggregate_on_ray(files, spec, output, address=ray, **given)
            where = {"bytes_read": read, "read_by": machines}
        else:
            parts = aggregate_streamed(
                files, spec, pre=pre, generator=draws, found=found, voidable=True
            )
            write_update(output, files, parts)
    except Refusal as error:
        raise InputError(str(error)) from error
    names = [str(path) for path in paths]
    weights = None if found.weights is None else [round(w, 9) for w in found.weights.tolist()]
    return {
        "rule": rule_name(spec, pre),
        "n": files.n,
        "d": files.d,
        "passes": found.passes,
        "bytes_read": files.bytes_read,
        "set_aside": [names[row] for row in found.set_aside],
        "weights": None if weights is None else dict(zip(names, weights, strict=True)),
        "output": str(output),
        **where,
    }
