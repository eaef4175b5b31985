"""A malicious node around anybody's ClientApp: Flower's seam for clients, a mod."""

from __future__ import annotations

from collections.abc import Mapping
from logging import WARNING

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common import log

from fedrobust import attacks
from fedrobust.flower.crafted_replies import Attack, attack_replies, check_attack
from fedrobust.flower.model_replies import Sent
from fedrobust.secret import fresh
from fedrobust.seeds import generator
from fedrobust.spec import SpecError

STATE = "fedrobust.byzantine"


def byzantine(attack: Attack, *, knowledge: str = "own", seed: int | None = None) -> Mod:
    """Make the node that runs this mod Byzantine: its training replies are replaced.

    The app's own code runs; its update, what it answers minus what it was sent, is what the
    attacker knows.

    Parameters
    ----------
    attack
        As in ``fedrobust.flower.Attackers``. An attack whose size depends on the number of nodes
        takes it from ``node_config["num-partitions"]``, or as ``n`` in its spec.
    knowledge
        "own": a node by itself knows no other's update. For colluding and omniscient attackers
        there is ``fedrobust.flower.Attackers``.
    seed
        For random attacks; None draws one from the system's entropy.

    Raises
    ------
    SpecError
        For an unknown attack, or another knowledge.
    """
    n = None
    if isinstance(attack, Mapping):
        n = attack.get("n")
        # n is the mod's own: the attack would refuse it as an unknown parameter.
        attack = {key: value for key, value in attack.items() if key != "n"}
    check_attack(attack)
    level = None if callable(attack) else attacks.knowledge(attack)[1]
    for given in (knowledge, level):
        if given not in ("own", None):
            raise SpecError(
                f"a node by itself knows its own update, not {given!r}: put "
                "fedrobust.flower.Attackers around the grid instead"
            )
    drawn = fresh() if seed is None else seed

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.split(".")[0] != "train":
            return call_next(message, context)
        sent = Sent.of([message])  # before the app's code runs: it may change the records
        reply = call_next(message, context)
        node, step = message.metadata.dst_node_id, _step(context)
        nodes = n if n is not None else context.node_config.get("num-partitions")
        if not isinstance(nodes, int):
            raise ValueError(
                "a Byzantine node needs to know how many nodes there are: set num-partitions in "
                'its node-config, or n in the attack: {"name": "alie", "n": 10}'
            )
        source = generator(drawn, "attack", round=step, client=node & (2**31 - 1))
        crafted = attack_replies(
            attack, sent, {node: reply}, [node], n=nodes, server_round=step, knowledge="own",
            generator=source,
        )  # fmt: skip
        if node not in crafted.replies:
            log(WARNING, "the Byzantine node changed nothing: %s", crafted.untouched.get(node))
        return crafted.replies.get(node, reply)  # type: ignore[return-value]  # None is silence

    return mod


def _step(context: Context) -> int:
    """Count the node's own trainings, from 0: apps need not say which round it is."""
    held = context.state.config_records.get(STATE)
    step = int(held["step"]) if held is not None else 0  # type: ignore[arg-type]
    context.state[STATE] = ConfigRecord({"step": step + 1})
    return step
