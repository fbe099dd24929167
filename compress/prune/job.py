"""What `penstock prune` is asked for, and what comes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..evaluate import Comparison
from ..evaluate.speed import Speed
from ..training.loop import TrainingReport
from .structure import Size

PARENT, PRUNED = "parent", "pruned"

# From folders of models by their names to how fast each decodes, beside the first.
MeasureSpeed = Callable[[Mapping[str, Path]], Mapping[str, Sequence[Speed]]]
# Told what is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PruneJob:
    """Attributes:
    model: "builtin", a folder or a hub id.
    mlp, kv_groups: shares of the MLP channels and of the key-value groups that go; layers: how many go. Any of them, or
    size: the share of the parameters that stays; or speed_up: how many times as fast at batch 1.
    source: where the texts come from, for the report.
    cache: where the texts are a cache's, which has others the next day: which cache's, and whose. The job goes on with those
        that it began with. None: they are the same whenever they are read.
    max_tokens: read of each text.
    recovery_steps, recovery_minutes: one of them; no steps for none.
    most_kl, most_perplexity_change: what the result is held to, on texts that are held out.
    force: whether a result that fails is written all the same, and may take the place of a folder.
    """

    model: str
    output: Path
    source: str
    mlp: float | None = None
    kv_groups: float | None = None
    layers: int | None = None
    size: float | None = None
    speed_up: float | None = None
    max_tokens: int = 512
    recovery_steps: int | None = None
    recovery_minutes: float | None = None
    learning_rate: float = 2e-4
    gradient_checkpointing: bool = False
    most_kl: float = 0.1
    most_perplexity_change: float = 0.05
    device: str = "auto"
    force: bool = False
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What went of one layer, and what that was worth.

    Attributes:
        number: in the parent.
        left_out_kl: of the model without this layer (and those left out before it), nats per token, where that was measured.
        left_out: whether the whole layer went.
        channels, groups: how many stay; groups_out: the numbers of those that went.
        mlp_loss: of the MLP's output, the share (of its squared length, on calibration texts) that is lost with the
            channels, after the others were fitted; attention_loss: likewise of the attention's output.
    """

    number: int
    left_out: bool
    channels: int
    groups: int
    groups_out: Sequence[int]
    mlp_loss: float
    attention_loss: float
    left_out_kl: float | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Attributes:
    parent_size, size: before and after.
    before, after: beside the parent on the held-out texts, as cut and as recovered.
    bytes, parent_bytes: of the weights, as stored.
    texts: how many were judged by; trained: how many there were to learn from.
    recovery: None without.
    spoilt: whether recovery left it further from its parent than it was as cut, which is how it is written then.
    speed: by PARENT and PRUNED, where it was measured.
    """

    parent_size: Size
    size: Size
    records: Sequence[LayerRecord]
    before: Comparison
    after: Comparison
    parameters: int
    parent_parameters: int
    bytes: int
    parent_bytes: int
    texts: int
    trained: int
    recovery: TrainingReport | None
    spoilt: bool = False
    speed: Mapping[str, Sequence[Speed]] = field(default_factory=dict)

    @property
    def written(self) -> Comparison:
        return self.before if self.spoilt else self.after
