"""Measures what fewer bits cost in accuracy on a CPU: python benchmarks/quantization.py PART --output FILE [options]

`answers`   exact answers of the demo model, by the service's engine, and the memory of the linear layers
`logits`    errors of the logits of the model in --model-dir, against float32
`outliers`  errors of one product whose input has one large activation
`loading`   seconds to load the model in --model-dir, which include packing, in turns

Each run writes its part into FILE, and keeps the other parts. `--settings` limits `answers` and `logits` to some
settings, whose results replace those in FILE. The parts are modules of the folder `quantization`. Python finds this
folder before this file.
"""

import sys

from servers import ROOT

sys.path.insert(0, str(ROOT / "demo" / "recipe"))

from quantization.command import main

if __name__ == "__main__":
    main(__doc__)
