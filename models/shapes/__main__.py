"""Train, evaluate and demonstrate the bundled model, a small CLIP for coloured shapes."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.shapes import MODEL_DIR


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.shapes", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train from scratch, with a fixed seed, on the CPU")
    train.add_argument("--folder", type=Path, default=MODEL_DIR, help="where to write the model")

    evaluate = commands.add_parser("evaluate", help="measure recall on held-out scenes")
    evaluate.add_argument("--folder", type=Path, default=MODEL_DIR, help="the model to measure")
    evaluate.add_argument(
        "--scenes", type=int, default=1000, help="number of scenes (default 1000)"
    )

    draw = commands.add_parser("draw", help="write sample pictures of scenes")
    draw.add_argument("folder", type=Path, help="where to write the pictures")
    draw.add_argument("--count", type=int, default=300, help="number of pictures (default 300)")

    demo = commands.add_parser("demo", help="start the service, index sample pictures, search")
    demo.add_argument(
        "--pictures", type=int, default=300, help="number of sample pictures (default 300)"
    )
    demo.add_argument(
        "--once",
        action="store_true",
        help="stop after the searches; by default the service keeps running",
    )

    arguments = parser.parse_args()
    if arguments.command == "train":
        from models.shapes.train import TrainingPlan
        from models.shapes.train import train as run_training

        run_training(arguments.folder, TrainingPlan())
    elif arguments.command == "evaluate":
        from models.shapes.evaluate import evaluate as run_evaluation

        print(run_evaluation(arguments.folder, arguments.scenes))
    elif arguments.command == "demo":
        from models.shapes.demo import run_demo

        raise SystemExit(run_demo(pictures=arguments.pictures, once=arguments.once))
    else:
        from models.shapes.samples import draw_samples

        draw_samples(arguments.folder, arguments.count)


if __name__ == "__main__":
    main()
