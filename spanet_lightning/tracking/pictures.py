"""Pictures of a run over its epochs: confusions, best and worst predictions, filters, spectra.

All are drawn by matplotlib, in colours that differ in lightness too. A picture's file is named as
MLflow's `log_image(key=…, step=…)` names it, so that the run's page has a slider over the steps.
"""

from __future__ import annotations

import io
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from spanet_lightning.data.normalize import MEAN, STD
from spanet_lightning.errors import invalid
from spanet_lightning.tracking import names
from spanet_lightning.tracking.attach import FOLDER as ANALYSES
from spanet_lightning.tracking.logger import MLflowLogger
from spanet_lightning.tracking.options import TrackingOptions
from spanet_lightning.tracking.telemetry import has_whole_tensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "images"
_LOGGED_TAG = "mlflow.loggedImages"  # with this tag, a run's page has a grid of images
_THUMBNAIL = 512  # pixels of the longer side of the copy that the grid shows
_MOST_LABELS = 25  # classes up to which a confusion matrix has names and numbers
_MOST_CLASSES = 4000  # above, a confusion matrix is not computed: its counts would fill the memory
_WORST_PAIRS = 5  # that are named below a confusion matrix
_MOST_BLOCKS = 8  # of a stage, whose filters are drawn
_LEAST_SPAN = 0.01  # of the scale of gains: noise at the start is not to look like a filter
_RIGHT, _WRONG = "#005ab5", "#dc5a00"


def picture_callbacks(options: TrackingOptions, model: LightningModule) -> list[Callback]:
    """Return the callbacks that draw what suits a task.

    Args:
        options: How often, and how much.
        model: The task.
    """
    from spanet_lightning.tasks import ClassificationTask

    every = options.log_images_every_n_epochs
    if not every:
        return []
    found: list[Callback] = []
    if isinstance(model, ClassificationTask):
        found = [ConfusionPicture(every), PredictionPicture(every, options.predictions)]
    if options.spectrum:
        found.append(SpectrumPicture(every, options.spectrum))
    return [*found, FilterPicture(every)]


def is_due(trainer: Trainer, every: int) -> bool:
    """Whether the epoch that is validated is one with pictures.

    Args:
        trainer: The trainer; outside of training, pictures are always due.
        every: Epochs between pictures. The last one has them too.
    """
    if trainer.sanity_checking:
        return False
    if trainer.state.fn != "fit":
        return True
    epoch = trainer.current_epoch + 1
    return epoch % every == 0 or epoch == trainer.max_epochs


def log_image(trainer: Trainer, image: Image.Image, name: str) -> None:
    """Record an image of this step, and a small copy, with the trackers that take images.

    Args:
        trainer: Knows the loggers and the step.
        image: The image.
        name: What it shows, the same at each step.
    """
    step = max(trainer.global_step - 1, 0)  # that of the metrics of the epoch
    stamp = f"timestamp+{int(time.time() * 1000)}+{uuid.uuid4()}"
    stem = f"{FOLDER}/{names.encode_file(name)}+step+{step}+{stamp}"
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    for logger in _loggers(trainer):
        logger.log_image(image, f"{stem}.png")
        logger.log_image(small, f"{stem}+compressed.webp")
        logger.set_tags({_LOGGED_TAG: "True"})


def name_of(file: str) -> str:
    """Return what a file of `log_image` shows."""
    return names.decode(Path(file).name.partition("+")[0])


class ConfusionPicture(Callback):
    """Draws the confusion matrix of the validation and the test set, of all processes.

    Args:
        every: Epochs between pictures.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._metric: MulticlassConfusionMatrix | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, where a picture is due."""
        backbone: Any = pl_module.backbone
        due = is_due(trainer, self.every) and 1 < backbone.num_classes <= _MOST_CLASSES
        self._metric = (
            MulticlassConfusionMatrix(int(backbone.num_classes)).to(pl_module.device)
            if due
            else None
        )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch, on its device."""
        if self._metric is not None and outputs:
            self._metric.update(outputs["logits"].argmax(dim=1), batch[1])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was counted."""
        metric, self._metric = self._metric, None
        if metric is None or not metric.update_called:
            return
        counts = metric.compute().cpu()  # in all processes
        if trainer.is_global_zero and int(counts.sum()):
            data = trainer.datamodule  # type: ignore[attr-defined]
            labels = getattr(data, "class_names", None) or map(str, range(len(counts)))
            figure = draw_confusions(counts, [str(label) for label in labels], _when(trainer))
            log_image(trainer, render(figure), f"confusion {_split(trainer)}")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def draw_confusions(counts: Tensor, labels: Sequence[str], title: str) -> Figure:
    """Return the figure of a confusion matrix: each row's shares of its true class.

    Args:
        counts: Images of each true class (first axis) by predicted class, shape (K, K).
        labels: Names of the classes.
        title: Which images, and when.
    """
    classes = len(counts)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    figure = _figure(7, 8)
    axes = figure.add_subplot()
    # Drawn here rather than by torchmetrics' plot, which passes tensors that numpy 2 warns of.
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    if classes <= _MOST_LABELS:
        short = [_short(label) for label in labels]
        axes.set_xticks(range(classes), short, rotation=90)
        axes.set_yticks(range(classes), short)
        for i, j in counts.nonzero().tolist():
            ink = "white" if shares[i, j] > 0.5 else "black"
            size = 10 if classes <= 15 else 7
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=ink, size=size)
    top1 = float(counts.trace() / counts.sum())
    axes.set_title(f"Confusion matrix, {title}: top-1 {top1:.4f} of {int(counts.sum()):,} images")
    pairs = "\n".join(confused_pairs(counts, labels)) or "No confusions."
    figure.supxlabel(pairs, fontsize=9, x=0.02, ha="left")
    return figure


def confused_pairs(counts: Tensor, labels: Sequence[str]) -> list[str]:
    """Return a line for each of the pairs of classes that are confused most."""
    wrong = counts.clone().fill_diagonal_(0)
    values, places = wrong.flatten().topk(min(_WORST_PAIRS, wrong.numel()))
    lines = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        i, j = divmod(place, len(counts))
        if value:
            of = int(counts[i].sum())
            lines.append(f"{_short(labels[i])} predicted as {_short(labels[j])}: {value} of {of}")
    return lines


@dataclass(frozen=True)
class Prediction:
    """An image with its prediction.

    Attributes:
        image: As the network saw it, values in [0, 1], shape (C, H, W).
        loss: Cross-entropy, in nats.
        target: Its class.
        label: The most probable class.
        probability: That class's.
    """

    image: Float[Tensor, "c h w"]
    loss: float
    target: int
    label: int
    probability: float


class PredictionPicture(Callback):
    """Draws the images of highest and of lowest loss; of several processes, the first one's.

    Args:
        every: Epochs between pictures.
        count: Images in each picture.
    """

    def __init__(self, every: int, count: int = 12) -> None:
        self.every = every
        self.count = count
        self._best: dict[str, list[Prediction]] | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to collect, where a picture is due."""
        due = trainer.is_global_zero and is_due(trainer, self.every)
        self._best = {"worst": [], "best": []} if due else None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the images of a batch that are among the worst or the best so far."""
        if self._best is None or not outputs:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        losses, logits = outputs["losses"], outputs["logits"]
        for which, predictions in self._best.items():
            worst = which == "worst"
            top = losses.topk(min(self.count, len(losses)), largest=worst)
            for loss, i in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                full = len(predictions) == self.count
                last = predictions[-1].loss if full else None
                if last is not None and (loss <= last if worst else loss >= last):
                    break
                predictions.append(_prediction(batch, logits, i, loss, data))
                predictions.sort(key=lambda one: one.loss, reverse=worst)
                del predictions[self.count :]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw both."""
        found, self._best = self._best, None
        data = trainer.datamodule  # type: ignore[attr-defined]
        labels = getattr(data, "class_names", None)
        for which, predictions in (found or {}).items():
            if predictions:
                title = f"{which.capitalize()} predictions, {_when(trainer)}"
                image = render(draw_predictions(predictions, labels, title))
                log_image(trainer, image, f"{which} {_split(trainer)}")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def draw_predictions(
    predictions: Sequence[Prediction], labels: Sequence[str] | None, title: str
) -> Figure:
    """Return a figure of images with their class, prediction and its probability.

    Args:
        predictions: The images, in order.
        labels: Names of the classes; None gives their numbers.
        title: What is above.
    """
    columns = min(6, len(predictions))
    rows = -(-len(predictions) // columns)
    figure = _figure(max(5.0, 1.5 * columns), 0.8 + 1.9 * rows)
    figure.suptitle(f"{title}\n(solid blue: right; dashed orange: wrong)", fontsize=11)
    for number, one in enumerate(predictions):
        axes = figure.add_subplot(rows, columns, number + 1)
        pixels = one.image.permute(1, 2, 0).numpy()
        axes.imshow(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0], cmap="gray")
        axes.set(xticks=[], yticks=[])
        right = one.target == one.label
        axes.spines[:].set(
            color=_RIGHT if right else _WRONG, linewidth=2, linestyle="-" if right else "--"
        )
        target, label = (
            _short(str(c) if labels is None else str(labels[c])) for c in (one.target, one.label)
        )
        text = f"{target}\n→ {label} ({one.probability:.0%})"
        axes.set_xlabel(text, fontsize=8, color=_RIGHT if right else _WRONG)
    return figure


class FilterPicture(Callback):
    """Draws the spectral filters of the backbone, where it has any.

    Args:
        every: Epochs between pictures.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what training starts from."""
        self._log(trainer, pl_module, "before training")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them as they are after an epoch."""
        if trainer.state.fn == "fit" and is_due(trainer, self.every):
            self._log(trainer, pl_module, f"epoch {trainer.current_epoch + 1}")

    def _log(self, trainer: Trainer, model: LightningModule, moment: str) -> None:
        backbone = _backbone(model)
        if backbone is None or not (trainer.is_global_zero and has_whole_tensors(trainer)):
            return
        size = getattr(trainer.datamodule, "image_size", 224)  # type: ignore[attr-defined]
        figure = draw_filters(backbone, moment, size if isinstance(size, int) else 224)
        if figure is not None:
            log_image(trainer, render(figure), "spectral filters")


def draw_filters(backbone: nn.Module, moment: str, image_size: int = 224) -> Figure | None:
    """Return a figure of the gains of all spectral filters; None where there are none.

    Each is the mean over its channels, DC in the middle; below it, the mean over frequencies and
    the standard deviation between channels.

    Args:
        backbone: The network; a filter is a module that has `gain(height, width)`.
        moment: When, for the title.
        image_size: Side of the images, in pixels.
    """
    stages = filter_gains(backbone, image_size)
    if not stages:
        return None
    planes = torch.cat([gain.mean(dim=0).flatten() for row in stages.values() for gain in row])
    middle = float(planes.mean())
    span = max(float((planes - middle).abs().max()), _LEAST_SPAN)
    columns = max(min(len(row), _MOST_BLOCKS) for row in stages.values())
    figure = _figure(max(5.0, 1.4 * columns + 1), 1.0 + 1.8 * len(stages))
    figure.suptitle(
        f"Gains of the spectral filters, {moment} (mean over channels, DC in the middle)"
    )
    cells = figure.subplots(len(stages), columns, squeeze=False)
    shown: Any = None
    for row, (stage, gains) in zip(cells, stages.items(), strict=True):
        row[0].set_ylabel(f"stage {stage}")
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, block in zip(row, _spread(len(gains)), strict=False):
            gain = gains[block]
            plane = whole_plane(gain.mean(dim=0), gain.shape[1])
            low, high = middle - span, middle + span
            shown = axes.imshow(plane.numpy(), cmap="PuOr_r", vmin=low, vmax=high)
            spread = float(gain.std(dim=0).mean()) if len(gain) > 1 else 0.0
            text = f"block {block + 1}\n{float(plane.mean()):.3f} ± {spread:.3f}"
            axes.set_xlabel(text, fontsize=8)
    figure.colorbar(shown, ax=cells, shrink=0.6)
    return figure


def filter_gains(backbone: nn.Module, image_size: int) -> dict[int, list[Tensor]]:
    """Return the gains of all spectral filters by stage, each of shape (C, H, W // 2 + 1).

    Args:
        backbone: The network.
        image_size: Side of the images, in pixels.
    """
    strides = [int(info["reduction"]) for info in getattr(backbone, "feature_info", ())]
    found: dict[int, list[Tensor]] = {}
    for name, module in backbone.named_modules():
        parts = name.split(".")
        if callable(getattr(module, "gain", None)) and parts[0] == "stages":
            stage = int(parts[1])
            side = max(1, image_size // strides[stage])
            with torch.no_grad():
                gain: Tensor = module.gain(side, side)
            found.setdefault(stage + 1, []).append(gain.detach().float().cpu())
    return found


def whole_plane(half: Float[Tensor, "h f"], width: int) -> Float[Tensor, "h {width}"]:
    """Return a half spectrum as the whole plane, DC in the middle.

    A real filter weights (u, v) and (-u, -v) alike.

    Args:
        half: Gains in the layout of a real FFT, F = W // 2 + 1 columns.
        width: W, in pixels of the stage.
    """
    # Rows -u, columns -v; of an even width, -W/2 is W/2 itself.
    mirrored = half.flip(0).roll(1, 0)[:, 1 : (width + 1) // 2].flip(1)
    whole: Tensor = torch.fft.fftshift(torch.cat([half, mirrored], dim=1))
    return whole


class SpectrumPicture(Callback):
    """Draws the relative log-amplitude of feature maps, as SPANetV2's Fig. 3, while it trains.

    As `spanet analyze spectrum` does, of the first images of the first validation batch, as the
    network gets them: the same ones each time, so that the figures of two epochs compare. It costs
    one more pass of those images through the backbone, and touches neither weights nor random
    numbers. The figure's data is recorded too: `analysis.figures.load`.

    Args:
        every: Epochs between pictures. The last epoch has one too.
        images: Number of images; no more than a validation batch has.

    Raises:
        ConfigError: If one is below 1.
    """

    def __init__(self, every: int = 10, images: int = 8) -> None:
        for key, value in (("every", every), ("images", images)):
            if value < 1:
                raise invalid(f"SpectrumPicture.{key}", value, "at least 1")
        self.every = every
        self.images = images
        self._batch: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can't be drawn before hours are spent on training.

        Raises:
            ConfigError: If the model has no blocks.
        """
        from spanet_lightning.analysis.layers import find_blocks

        backbone = _backbone(pl_module)
        if stage == "fit" and backbone is not None:
            find_blocks(backbone)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the first images, where a picture is due."""
        due = trainer.is_global_zero and is_due(trainer, self.every)
        if due and batch_idx == 0 and dataloader_idx == 0 and trainer.state.fn == "fit":
            images = batch[0]
            self._batch = images[: self.images] if isinstance(images, Tensor) else None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them as the network sees them now."""
        images, self._batch = self._batch, None
        loggers = list(_loggers(trainer))
        backbone = _backbone(pl_module)
        if images is None or backbone is None or not loggers or not has_whole_tensors(trainer):
            return
        from spanet_lightning.analysis import figures
        from spanet_lightning.analysis.models import LoadedModel
        from spanet_lightning.analysis.spectrum import spectra, spectrum_figure

        # The images are normalised already.
        moment = f"epoch {trainer.current_epoch + 1}"
        model = LoadedModel(moment, backbone, (0.0,), (1.0,), trained=True)
        with trainer.precision_plugin.forward_context():
            found = spectra(model, [images])
        title = f"Relative log amplitude of the outputs of blocks, {len(images)} images"
        figure = spectrum_figure([found], title)
        log_image(trainer, figures.picture(figure), "feature spectra")
        with tempfile.TemporaryDirectory() as folder:
            name = f"epoch-{trainer.current_epoch + 1:04d}.npz"
            file = figures.save_data(Path(folder) / name, figure)
            for logger in loggers:
                logger.log_artifact(file, f"{ANALYSES}/spectrum")


def render(figure: Figure) -> Image.Image:
    """Return a figure as an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    image = Image.open(buffer)
    image.load()
    return image.convert("RGB")


def statistics(data: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation that images of a data module were normalised by."""
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    return (MEAN, STD) if mean is None or std is None else (mean, std)


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure without pyplot, whose state other code may be using."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _prediction(batch: Any, logits: Tensor, i: int, loss: float, data: Any) -> Prediction:
    probabilities = logits[i].float().softmax(dim=0)
    label = int(probabilities.argmax())
    mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in statistics(data))
    image = batch[0][i].detach().float().cpu() * std + mean
    return Prediction(
        image=image.clamp(0, 1),
        loss=loss,
        target=int(batch[1][i]),
        label=label,
        probability=float(probabilities[label]),
    )


def _spread(count: int) -> list[int]:
    """Return which of so many blocks are drawn: first, last, and some between."""
    if count <= _MOST_BLOCKS:
        return list(range(count))
    return [round(i * (count - 1) / (_MOST_BLOCKS - 1)) for i in range(_MOST_BLOCKS)]


def _backbone(model: LightningModule) -> nn.Module | None:
    """Return the network itself where it was compiled; None where a task has none."""
    backbone = getattr(model, "backbone", None)
    found = getattr(backbone, "_orig_mod", backbone)
    return found if isinstance(found, nn.Module) else None


def _loggers(trainer: Trainer) -> Iterator[MLflowLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, MLflowLogger))


def _split(trainer: Trainer) -> str:
    return "test" if trainer.testing else "val"


def _when(trainer: Trainer) -> str:
    moment = "after training" if trainer.testing else f"epoch {trainer.current_epoch + 1}"
    return f"{_split(trainer)}, {moment}"


def _short(label: str) -> str:
    return label if len(label) <= 16 else f"{label[:15]}…"
