"""The page of a result: what was compared and how, the tables, and the engines that did not run."""

from collections.abc import Iterable, Iterator
from typing import Any

from .matrix_sizes import prompt_operations
from .report_figures import Figures, Result, bandwidth, bits, figures, operations_per_second, prompt_tokens

METHOD = """\
Every engine serves the same random checkpoint: CLIP ViT-L/14 at 224 pixels and a LLaMA of 888 million parameters. In \
each round each engine is started in turn, alone on the machine, and answers one request to warm up. Then it gets \
bursts: all requests of a burst are sent at once, each with another picture. Answers are greedy, end-of-sequence \
tokens are ignored, and one client takes the time of every token as it arrives over HTTP. Every other round has the \
engines in reverse order. Figures are medians over the rounds, TTFT and time per token are means over the requests of \
a burst. All threads wait passively (`GOMP_SPINCOUNT=0`, `OMP_WAIT_POLICY=passive`, `KMP_BLOCKTIME=0`).

This service and vLLM are asked through their own servers. OpenVINO GenAI, transformers and llama.cpp are libraries: \
a small HTTP server of Python's standard library stands before them (`peers/adapters/`) and sends each token when the \
library gives it. This service checks requests, decodes pictures safely and writes logs and metrics; the small server \
does nothing of that kind. OpenVINO's continuous batching gets a new request before each step, and its prefix cache is \
on, as here and in vLLM."""


def page(result: Result, plot: str | None) -> str:
    """Returns the Markdown. `plot` is the address of the plot, seen from the page."""
    parts = ["# This service and its peers on a CPU", _head(result), METHOD]
    if plot:
        parts.append(f"![Tokens per second and time to first token by callers, and speed by bits]({plot})")
    parts += ["## One caller", _limits(result), _one_caller(result)]
    for title, value in (
        ("Tokens per second by callers", lambda f: f"{f.tokens_per_second:.1f}"),
        ("Mean time to first token by callers, s", lambda f: f"{f.ttft:.2f}"),
        ("Seconds until all callers have their answers", lambda f: f"{f.seconds:.1f}"),
        ("Mean time of a token after the first, ms", lambda f: f"{1e3 * f.tpot:.0f}"),
    ):
        parts += [f"## {title}", _by_callers(result, value)]
    return "\n\n".join([*parts, *_notes(result), *_failures(result)]) + "\n"


def _head(result: Result) -> str:
    machine, options = result["machine"], result["options"]
    toy = " A toy checkpoint: its times say nothing." if options["small"] else ""
    versions: dict[str, str] = {}
    for engine in result["engines"].values():
        versions |= engine.get("versions", {})
    versions |= {name: machine[name] for name in ("torch", "transformers")}
    named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    command = " ".join(f"'{word}'" if " " in word else word for word in result["command"])
    return (
        f"{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, {named}; commit "
        f"{machine['commit'][:7]}; {result['date']}; answers of {options['tokens']} tokens, {options['rounds']} "
        f"rounds: `{command}`.{toy}"
    )


def _limits(result: Result) -> str:
    text = (
        f"The machine reads {bandwidth(result) / 1e9:.1f} GB/s, so a token takes at least the time of the floor: the "
        "bytes of the language model's matrices over that rate."
    )
    lengths = prompt_tokens(result)
    if lengths is None:
        return text
    tokens, cached = lengths
    operations = prompt_operations(result["config"], tokens - cached)
    times = [
        f"{operations / operations_per_second(result, dtype):.2f} s in {dtype}" for dtype in ("bfloat16", "float32")
    ]
    return (
        f"{text} A prompt has {tokens} tokens, of which {cached} are in the prefix cache. The others and the picture "
        f"take {operations / 1e9:.0f} GFLOP: {' and '.join(times)}, at the rate of one large product."
    )


def _one_caller(result: Result) -> str:
    head = ["engine", "bits", "TTFT, s", "ms a token", "floor, ms", "times the floor", "memory, GiB", "start, s"]
    rows = []
    for engine, by_callers in figures(result).items():
        one = by_callers[min(by_callers)]
        floor = result["engines"][engine]["weight_bytes"] / bandwidth(result)
        rows.append(
            [
                engine, f"{bits(result, engine):.2g}", f"{one.ttft:.2f}", f"{1e3 * one.tpot:.1f}", f"{1e3 * floor:.1f}",
                f"{one.tpot / floor:.2f}", f"{one.resident_gib:.1f}", f"{one.start_seconds:.1f}",
            ]
        )  # fmt: skip
    return _table(head, rows)


def _by_callers(result: Result, value: Any) -> str:
    measured = figures(result)
    callers = sorted({number for by_callers in measured.values() for number in by_callers})
    rows = (
        [engine, *(_cell(by_callers.get(number), value) for number in callers)]
        for engine, by_callers in measured.items()
    )
    return _table(["engine", *map(str, callers)], rows)


def _cell(found: Figures | None, value: Any) -> str:
    return "–" if found is None else str(value(found))


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Returns a table with its first column aligned to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _notes(result: Result) -> Iterator[str]:
    notes = [f"- {name}: {engine['note']}." for name, engine in result["engines"].items() if engine.get("note")]
    if notes:
        yield "## What differs\n\n" + "\n".join(notes)


def _failures(result: Result) -> Iterator[str]:
    failed = {name: engine["failure"] for name, engine in result["engines"].items() if "failure" in engine}
    if failed:
        yield "## What did not run"
    for name, reason in failed.items():
        yield f"{name}:\n\n```\n{reason}\n```"
