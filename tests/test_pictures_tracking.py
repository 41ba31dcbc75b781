"""If one of these fails, a picture of a run shows something else than it says, or is missing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spanet_lightning import SPANet, SPANetV2
from spanet_lightning.cli.overlays import Overlays
from spanet_lightning.tracking import pictures
from spanet_lightning.tracking.options import TrackingOptions
from tests.tracked import Recorded, recorded  # noqa: F401 - a fixture


def trainer(fn: str = "fit", **values) -> SimpleNamespace:
    state = SimpleNamespace(fn=fn)
    return SimpleNamespace(sanity_checking=False, state=state, current_epoch=0, **values)


def test_a_run_has_its_pictures_by_step(recorded: Recorded):  # noqa: F811
    files = [item.path for item in recorded.store.client.list_artifacts(recorded.run.id, "images")]
    shown = sorted({(pictures.name_of(file), int(file.split("+")[2])) for file in files})
    assert shown == [
        ("best test", 5),  # of two epochs of three steps
        ("best val", 5),
        ("confusion test", 5),
        ("confusion val", 5),
        ("spectral filters", 0),
        ("spectral filters", 5),
        ("worst test", 5),
        ("worst val", 5),
    ]
    # The small copies, without which the page shows no grid; MLflow takes its cue from the tag.
    assert sum(file.endswith("+compressed.webp") for file in files) == len(shown)
    assert recorded.run.tags["mlflow.loggedImages"] == "True"


def test_pictures_come_every_so_many_epochs_and_at_the_end():
    run = trainer(max_epochs=10)
    due = []
    for run.current_epoch in range(10):
        due += [run.current_epoch + 1] if pictures.is_due(run, 4) else []
    assert due == [4, 8, 10]
    run.sanity_checking = True
    assert not pictures.is_due(run, 1)
    options = TrackingOptions(log_images_every_n_epochs=0)
    assert pictures.picture_callbacks(options, torch.nn.Module()) == []


def test_overlays_are_predicted_only_when_they_are_due():
    run = trainer(max_epochs=9, loggers=[], global_step=0, datamodule=None)
    asked = []
    task = SimpleNamespace(predict_step=lambda batch: asked.append(run.current_epoch) or [])
    overlays = Overlays(1, record=None, every=4)
    for run.current_epoch in range(9):
        overlays.on_validation_batch_end(run, task, None, None, 0)
    assert asked == [3, 7, 8]


def test_a_cell_is_its_share_of_the_row_and_the_worst_pair_is_named():
    counts = torch.tensor([[3, 1], [0, 4]])
    figure = pictures.draw_confusions(counts, ["cat", "dog"], "val")
    (axes,) = figure.axes
    shown = torch.tensor(np.asarray(axes.images[0].get_array()))
    torch.testing.assert_close(shown, torch.tensor([[0.75, 0.25], [0.0, 1.0]]))
    assert [text.get_text() for text in axes.texts] == ["3", "1", "4"]
    assert "top-1 0.8750 of 8 images" in axes.get_title()
    assert pictures.confused_pairs(counts, ["cat", "dog"]) == ["cat predicted as dog: 1 of 4"]


@pytest.mark.parametrize("classes", [2, 26, 1000])
def test_any_number_of_classes_fits(classes: int):
    names = [f"a rather long name of class {i}" for i in range(classes)]
    figure = pictures.draw_confusions(torch.eye(classes, dtype=torch.long), names, "val")
    image = np.asarray(pictures.render(figure))
    assert image.shape == (800, 700, 3)
    assert image.min() < 100 < image.max()


def test_the_worst_and_the_best_of_all_batches_are_collected(monkeypatch):
    data = SimpleNamespace(mean=0.5, std=0.25, class_names=("a", "b", "c"))
    run = trainer("validate", is_global_zero=True, datamodule=data, testing=False)
    callback = pictures.PredictionPicture(every=1, count=3)
    callback.on_validation_epoch_start(run, None)
    losses = [0.1, 2.0, 0.5, 0.3, 3.0, 0.2, 1.0]
    for start in (0, 4):
        part = torch.tensor(losses[start : start + 4])
        batch = (torch.full((len(part), 1, 4, 4), 2.0), torch.zeros(len(part), dtype=torch.long))
        outputs = {"losses": part, "logits": torch.eye(3)[[0] * len(part)]}
        callback.on_validation_batch_end(run, None, outputs, batch, 0)
    found = {}
    monkeypatch.setattr(pictures, "log_image", lambda *_: None)
    monkeypatch.setattr(
        pictures,
        "draw_predictions",
        lambda images, names, title: found.update({title: images}) or pictures._figure(1, 1),
    )
    callback.on_validation_epoch_end(run, None)
    worst, best = found.values()
    assert [one.loss for one in worst] == pytest.approx([3.0, 2.0, 1.0])
    assert [one.loss for one in best] == pytest.approx([0.1, 0.2, 0.3])
    assert float(worst[0].image.unique()) == 1.0  # 2 · 0.25 + 0.5
    assert worst[0].probability == pytest.approx(np.exp(1) / (np.exp(1) + 2), rel=1e-4)


def test_right_and_wrong_are_told_by_more_than_colour():
    image = torch.rand(3, 8, 8)
    shown = [pictures.Prediction(image, 0.1, 0, label, 0.9) for label in (0, 1)]
    figure = pictures.draw_predictions(shown, ("cat", "dog"), "Worst")
    assert [axes.spines["top"].get_linestyle() for axes in figure.axes] == ["-", "--"]
    assert figure.axes[1].get_xlabel() == "cat\n→ dog (90%)"
    assert min(pictures.render(figure).size) > 200


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 7), (6, 9), (5, 4)])
def test_half_a_spectrum_is_completed_as_the_fft_has_it(height: int, width: int):
    kernel = torch.rand(height, width)
    full = torch.fft.fft2(kernel).abs()
    half = torch.fft.rfft2(kernel).abs()
    torch.testing.assert_close(pictures.whole_plane(half, width), torch.fft.fftshift(full))


def test_every_filter_of_the_backbone_is_drawn_as_its_module_says():
    model = SPANetV2("test", depths=(1, 1, 12, 1), img_size=64)
    gains = pictures.filter_gains(model, 64)
    assert {stage: len(row) for stage, row in gains.items()} == {1: 1, 2: 1, 3: 12, 4: 1}
    assert gains[1][0].shape[1:] == (16, 9)
    figure = pictures.draw_filters(model, "now", 64)
    labels = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert len(labels) == 1 + 1 + 8 + 1
    assert labels[-2].startswith("block 12")
    assert pictures.draw_filters(SPANetV2("test", srf=False, img_size=64), "now") is None
    assert pictures.draw_filters(SPANet("test", spf=False), "now") is None


def test_learning_shows():
    model = SPANetV2("test", img_size=64)
    before = np.asarray(pictures.render(pictures.draw_filters(model, "now", 64)), int)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("stages.0") and "logits" in name:
                parameter.copy_(torch.randn_like(parameter))
    after = np.asarray(pictures.render(pictures.draw_filters(model, "now", 64)), int)
    assert before.shape == after.shape
    assert np.abs(before - after).max() > 50
