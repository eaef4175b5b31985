"""A small GPT-2 with adapters of PEFT, for ``--use``; needs ``pip install "fedrobust[adapters]"``.

Its weights are drawn from the experiment's seed: nothing is fetched. With weights at hand only the
line that makes the base changes, as the page *Adapters of language models* shows.
"""

from torch import Tensor, nn

RANK = 4
WIDTH = 64


class Logits(nn.Module):
    """A language model of transformers as our losses take it: tokens in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, vocabulary) for tokens (B, T)."""
        return self.model(input_ids=tokens).logits


def gpt2(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One layer of GPT-2, 64 wide; adapters of rank 4 in each projection, and a new head."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=classes, n_positions=shape[0], n_embd=WIDTH, n_layer=1, n_head=4,
        bos_token_id=0, eos_token_id=0, tie_word_embeddings=False, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    adapters = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=["c_attn", "c_proj", "c_fc"],
        # GPT-2's projections are Conv1D, not Linear: their weights are (in, out).
        modules_to_save=["lm_head"], fan_in_fan_out=True,
    )  # fmt: skip
    return Logits(get_peft_model(GPT2LMHeadModel(config), adapters))
