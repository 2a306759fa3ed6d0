"""Logs of requests in each format, with faults in them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from judging import Ended, absurd_numbers, run
from mutations import mutated_json, mutated_text

RECORDED = Path(__file__).parents[1] / "analysis" / "recorded_requests"
USAGE = {"prompt_tokens": 90, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 32}}
RESULT = {
    **{"duration": 1.5, "completed": 2, "total_input_tokens": 30, "total_output_tokens": 8},
    **{"input_lens": [10, 20, 30], "output_lens": [5, 3, 0], "cached_tokens": [0, 16, 0], "errors": ["", "", "late"]},
}
ANSWERS = [{"response": {"status_code": 200, "body": {"usage": USAGE}}}, {"usage": USAGE}, {"error": {"message": "x"}}]
RECORDS = [json.loads(line) for line in (RECORDED / "aiperf.jsonl").read_text(encoding="utf-8").splitlines()]
REPORT = json.loads((RECORDED / "guidellm.json").read_text(encoding="utf-8"))
TABLE = "prompt_tokens,cached_tokens,output_tokens\n" + "900,512,9\n300,,40\n" * 3
#: The documents of each format; the text of several is a line each.
FORMATS = {"list": [ANSWERS], "lines": ANSWERS, "result": [RESULT], "aiperf": RECORDS, "guidellm": [REPORT]}


@pytest.mark.parametrize("form", [*FORMATS, "table"])
def test_log(fuzz, form):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        if form == "table":
            content = mutated_text(TABLE, chance)
        else:
            lines = [json.dumps(document).encode() for document in FORMATS[form]]
            at = chance.randrange(len(lines))
            lines[at] = mutated_json(FORMATS[form][at], chance)
            content = b"\n".join(lines)
        log = folder / "log"
        log.write_bytes(content)
        skip = ["--skip-bad"] if chance.random() < 0.5 else []
        model = ("--model", "llama-3.1-8b")
        return lambda: run(
            "analyze", *model, "--requests", str(log), *skip, "--no-track", "--json", "--output-dir", "o"
        )

    fuzz(f"log/{form}", 40, mutate, absurd_numbers)
