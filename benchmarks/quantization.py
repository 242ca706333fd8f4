"""Measures exact answers and memory with 4-bit layers and without: python benchmarks/quantization.py --output FILE

The service loads the demo model both ways, and `llava-serving evaluate vqa` says which answers are right. The questions
are those of demo/recipe/evaluate.py, which no training step saw.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from servers import ROOT, machine

from llava_serving.service.self_check import sentence_loss
from llava_serving.weights.loader import load_model
from llava_serving.weights.model_folder import PartsFolder

sys.path.insert(0, str(ROOT / "demo" / "recipe"))
from evaluate import SCENES, Sets, count_right, service_answers
from heldout import easy_vqa_test, new_scenes, unseen_digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    sets = {"easy-VQA test": easy_vqa_test(), "new scenes": new_scenes(SCENES), "unseen digits": unseen_digits()}
    examples = {name: list(generator) for name, generator in sets.items()}
    results = {quantization: measure(quantization, examples) for quantization in ("none", "nf4")}
    report = {
        "machine": machine() | {"bitsandbytes": version("bitsandbytes")}, "command": sys.argv, "results": results,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def measure(quantization: str, examples: Sets) -> dict[str, Any]:
    answers = service_answers(examples, {"LLAVA_QUANTIZATION": quantization})
    loaded = load_model(PartsFolder(ROOT / "demo"), "cpu", "float32", quantization=quantization)
    layers = loaded.model.model.language_model.layers
    return {
        "sentence_loss": round(sentence_loss(loaded), 3),
        "layer_bytes": sum(value.nbytes for value in layers.state_dict().values()),
        "right": {name: count_right(subset, answers[name])["all"] for name, subset in examples.items()},
    }


if __name__ == "__main__":
    main()
