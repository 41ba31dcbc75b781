"""Train a small SPANetV2 from Python: no configuration file, no command line.

    python examples/train_digits.py

The images are scikit-learn's embedded digits; ten epochs take about ten seconds on a CPU.
"""

from __future__ import annotations

from spanet_lightning import ClassificationTask, DigitsDataModule, SPANetV2, Trainer


def main(max_epochs: int = 10) -> float:
    """Train and test; return the test accuracy.

    Args:
        max_epochs: Epochs to train.
    """
    data = DigitsDataModule(batch_size=64)
    backbone = SPANetV2("test", img_size=32, num_classes=data.num_classes)
    task = ClassificationTask(backbone, mixup_alpha=0.0, cutmix_alpha=0.0)
    trainer = Trainer(max_epochs=max_epochs, accelerator="cpu", devices=1)
    trainer.fit(task, data)
    (metrics,) = trainer.test(task, data)
    return metrics["test/top1"]


if __name__ == "__main__":
    main()
