"""Markdown tables of a result, with one section per phase that was run."""

from collections.abc import Callable, Iterable
from typing import Any

Result = dict[str, Any]
PATHS = {
    "graph": "captured graph", "graph, int8 KV": "captured graph, int8 KV cache", "eager": "launch by launch",
    "torch": "torch's operators", "before": "before",
}  # fmt: skip


def tables(result: Result, before: dict[int, float]) -> str:
    """Returns the Markdown. `before` is milliseconds per decode step of an earlier engine, by number of sequences."""
    parts = [_head(result)]
    for name, section in SECTIONS.items():
        phase = result["phases"].get(name)
        if phase is None:
            continue
        if "error" in phase:
            parts.append(f"### {name}\n\nfailed: `{phase['error'].strip().splitlines()[-1]}`")
        else:
            parts.append(section(phase, before))
    return "\n\n".join(parts)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """Returns a table with its first column aligned to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def decimal(value: float | None, digits: int = 3) -> str:
    """Returns `digits` significant digits without an exponent, or a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e" in text and abs(value) >= 1 else text


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def error(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


def _head(result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    driver = f", driver {result['driver']}" if result["driver"] else ""
    commit = f", commit {result['commit'][:7]}" if result["commit"] else ""
    changed = " with changes" if result["uncommitted_changes"] else ""
    toy = " A toy in Triton's interpreter: its times say nothing." if result["small"] else ""
    return (
        f"{result['device']}{driver}; {versions}{commit}{changed}; {result['date']}, {result['seconds']:.0f} s:"
        f" `{result['command']}`.{toy}"
    )


def _bandwidth(phase: Result, _: dict[int, float]) -> str:
    rows = [
        [kind, decimal(phase[kind]["tb_per_second"]), percent(phase[kind]["share_of_published"])]
        for kind in ("copy", "read")
    ]
    return "### Bandwidth\n\n" + table([f"of {phase['bytes'] / 2**30:.2g} GiB", "TB/s", "of the data sheet"], rows)


def _kernels(phase: Result, _: dict[int, float]) -> str:
    text = f"Errors are relative to float64; at most {phase['tolerance']} holds."
    return f"### Kernels\n\n{text}\n\n{_kernel_table(phase['rows'])}"


def _kernel_table(results: list[Result]) -> str:
    rows = (
        [
            row["kernel"], str(row["rows"]), decimal(row["microseconds"]), decimal(row["bytes"] / 1e6),
            decimal(row["tb_per_second"]), percent(row["share_of_read"]), error(row["relative_error"]),
        ]
        for row in results
    )  # fmt: skip
    return table(["kernel", "rows", "µs", "MB", "TB/s", "of read", "error"], rows)


def _prefill(phase: Result, _: dict[int, float]) -> str:
    return "### Prefill\n\n" + _prefill_table(phase["prompts"], phase["images"])


def _prefill_table(prompt_results: list[Result], image_results: list[Result]) -> str:
    prompts = (
        [
            f"{row['tokens']} tokens", decimal(row["milliseconds"]), decimal(row["tokens_per_second"], 4),
            decimal(row["tflop_per_second"]), percent(row["share_of_published"]),
        ]
        for row in prompt_results
    )  # fmt: skip
    images = (
        [f"{row['images']} pictures, encoded", decimal(row["milliseconds"]), "–", "–", "–"] for row in image_results
    )
    return table(["step", "ms", "tokens/s", "TFLOP/s", "of the data sheet"], [*prompts, *images])


def _decode(phase: Result, before: dict[int, float]) -> str:
    return "### Decode\n\n" + _decode_table(phase, before)


def _decode_table(phase: Result, before: dict[int, float]) -> str:
    rows = [
        [
            PATHS[row["path"]], str(row["sequences"]), decimal(row["milliseconds"]), decimal(row["host_milliseconds"]),
            decimal(row["tokens_per_second"]), decimal(row["tb_per_second"]), percent(row["share_of_read"]),
            percent(row["share_of_published"]),
        ]
        for row in phase["rows"]
    ]  # fmt: skip
    for sequences, milliseconds in before.items():
        rate = decimal(1e3 * sequences / milliseconds)
        rows.append([PATHS["before"], str(sequences), decimal(milliseconds), "–", rate, "–", "–", "–"])
    head = ["path", "sequences", "ms a step", "host ms", "tokens/s", "TB/s", "of read", "of the data sheet"]
    capture = phase["capture"]
    memory = "" if capture["mib"] is None else f" and {capture['mib']:.0f} MiB"
    return f"{table(head, rows)}\n\nCapture takes {decimal(capture['seconds'])} s{memory}."


def _chats(phase: Result, _: dict[int, float]) -> str:
    engine, generate = phase["engine"], phase["generate"]
    rows = (
        [
            name, str(run["chats"]), str(run["tokens"]), decimal(run["seconds"]),
            decimal(run["tokens_per_second"]), decimal(run.get("mean_ttft_seconds")),
        ]
        for name, run in (("engine, all at once", engine), ("generate, one after the other", generate))
    )  # fmt: skip
    text = f"Each has {phase['prompt_tokens']} tokens with its picture. The ratio is {decimal(phase['ratio'])}."
    head = ["chats with a picture", "chats", "tokens", "seconds", "tokens/s", "first token after s"]
    return f"### Chats\n\n{table(head, rows)}\n\n{text}"


def _launches(phase: Result, _: dict[int, float]) -> str:
    return "### Launches\n\n" + _launch_table(phase)


def _launch_table(phase: Result) -> str:
    rows = (
        [
            PATHS[row["path"]], str(row["sequences"]), str(row["launches"]), decimal(row["a_layer"]),
            str(row["copies"]), "–" if row["host_calls"] is None else str(row["host_calls"]),
        ]
        for row in phase["rows"]
    )  # fmt: skip
    head = ["path", "sequences", f"{phase['counted']} a step", "a layer", "copies", "driver calls"]
    return table(head, rows)


def _equality(phase: Result, _: dict[int, float]) -> str:
    return "### Equal greedy answers\n\n" + _equality_table(phase)


def _equality_table(phase: Result) -> str:
    rows = (
        [name, f"{phase['requests'] - len(path['differing'])} of {phase['requests']}"]
        for name, path in phase["paths"].items()
    )
    return table(["path", f"as {phase['reference']}"], rows)


def _int8(phase: Result, _: dict[int, float]) -> str:
    parts = [
        "### 8-bit weights",
        f"The layers' weights take {phase['weight_bytes'] / 1e9:.3g} GB, instead of "
        f"{phase['unpacked_weight_bytes'] / 1e9:.3g} GB.",
        _kernel_table(phase["kernels"]),
        _prefill_table(phase["prompts"], []),
        _decode_table(phase["decode"], {}),
        _launch_table(phase["launches"]),
        _equality_table(phase["equality"]),
    ]
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[Result, dict[int, float]], str]] = {
    "bandwidth": _bandwidth, "kernels": _kernels, "prefill": _prefill, "decode": _decode, "launches": _launches,
    "chats": _chats, "int8": _int8, "equality": _equality,
}  # fmt: skip
