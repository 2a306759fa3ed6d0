"""A serving engine at work: two scrapes of vLLM's metrics, saved or fetched from a real server."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from pages_of_deepseek import read_profile

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers import read_scrape_files, read_scrapes, scrape

MODEL = "deepseek-ai/DeepSeek-OCR"


def scraped(requests=0, prompt=0, new=0, prefill=0.0, decode=0.0, flops=None, model=MODEL, engines=1, extra="") -> str:
    """What vLLM's /metrics answers, of which this is read; each engine has the same share."""
    lines = []
    for engine in range(engines):
        labels = f'engine="{engine}",model_name="{model}"'
        share = [value / engines for value in (requests, prompt, new, prefill, decode)]
        lines += [
            f"vllm:prompt_tokens_total{{{labels}}} {share[1]}",
            f"vllm:generation_tokens_total{{{labels}}} {share[2]}",
            f'vllm:request_prefill_time_seconds_bucket{{{labels},le="+Inf"}} {share[0]}',
            f"vllm:request_prefill_time_seconds_sum{{{labels}}} {share[3]}",
            f"vllm:request_prefill_time_seconds_count{{{labels}}} {share[0]}",
            f'vllm:request_decode_time_seconds_bucket{{{labels},le="+Inf"}} {share[0]}',
            f"vllm:request_decode_time_seconds_sum{{{labels}}} {share[4]}",
            f"vllm:request_decode_time_seconds_count{{{labels}}} {share[0]}",
        ]
        if flops is not None:
            lines.append(f"vllm:estimated_flops_per_gpu_total{{{labels}}} {flops / engines}")
    return "# HELP vllm:x what vLLM says\n" + "\n".join(lines) + f"\n{extra}"


BEFORE = scraped(2, 1826, 1024, 1.0, 8.0)
AFTER = scraped(102, 93126, 52224, 13.0, 408.0)


@pytest.mark.parametrize("engines", [1, 2])
def test_means_of_the_requests_in_between(engines):
    after = scraped(102, 93126, 52224, 13.0, 408.0, flops=1.5e14, engines=engines)
    before = scraped(2, 1826, 1024, 1.0, 8.0, flops=1e12, engines=engines)
    profile = read_scrapes(before, after, seconds=60.0)
    assert profile.times_ms["forward"] == (pytest.approx(120.0),)
    assert profile.times_ms["decode_total"] == (pytest.approx(4000.0),)
    assert profile.times_ms["decode"] == (pytest.approx(4000.0 / 511),)
    # The vision encoder runs inside of what vLLM calls prefill: no time is the prefill's own.
    assert "prefill" not in profile.times_ms
    assert profile.measured == {"prompt_tokens": 913, "new_tokens": 512, "batch_size": 1}
    assert profile.metrics["engine/requests"] == 100
    assert profile.metrics["engine/seconds"] == 60.0
    assert profile.metrics["engine/estimated_flops"] == pytest.approx(1.49e14)
    assert profile.metrics["engine/concurrency"] == pytest.approx(412 / 60)
    assert any("vision encoder runs inside" in note for note in profile.notes)
    assert any("lower bound" in note for note in profile.notes)


def test_the_model_is_the_one_that_both_pages_name():
    assert read_scrapes(BEFORE, AFTER).served_model == MODEL
    with pytest.raises(
        StagemeterError, match=r"of model 'other', and first scrape of 'deepseek-ai/DeepSeek-OCR'\. Give"
    ):
        read_scrapes(BEFORE, AFTER.replace(MODEL, "other"))


def test_without_the_time_between_nothing_is_said_about_the_machine(tmp_path):
    files = [tmp_path / "before.txt", tmp_path / "after.txt"]
    for file, text in zip(files, (BEFORE, AFTER), strict=True):
        file.write_text(text)
    profile = read_scrape_files(*files)
    assert "engine/seconds" not in profile.metrics
    assert any("not known without the time between" in note for note in profile.notes)


def test_tokens_that_are_no_whole_mean_are_rounded_and_said():
    profile = read_scrapes(BEFORE, scraped(102, 93156, 52224, 13.0, 408.0))
    assert profile.measured["prompt_tokens"] == 913
    assert any("mean lengths of requests, 913.3 prompt and 512 new tokens" in note for note in profile.notes)


def tokens_of_finished(requests: int, prompt: int, new: int) -> str:
    """The histograms of tokens, which are over the same requests as those of times."""
    labels = f'engine="0",model_name="{MODEL}"'
    return "".join(
        f"vllm:request_{kind}_tokens_sum{{{labels}}} {total}\nvllm:request_{kind}_tokens_count{{{labels}}} {requests}\n"
        for kind, total in (("prompt", prompt), ("generation", new))
    )


def test_tokens_are_those_of_the_finished_requests_where_they_are_known():
    before, after = tokens_of_finished(2, 1826, 1024), tokens_of_finished(102, 93126, 52224)
    # The counters have also seen a prompt of 50,000 tokens that is under way.
    busy = scraped(102, 143126, 52224, 13.0, 408.0)
    profile = read_scrapes(BEFORE + before, busy + after)
    assert profile.measured == {"prompt_tokens": 913, "new_tokens": 512, "batch_size": 1}
    assert not any("requests that are not finished" in note for note in profile.notes)
    fallback = read_scrapes(BEFORE, busy)
    assert fallback.measured["prompt_tokens"] == 1413
    assert any("vllm:prompt_tokens_total, which also counts requests that are not" in note for note in fallback.notes)


def test_work_that_was_saved_is_spoken_of():
    labels = f'{{engine="0",model_name="{MODEL}"}}'
    before = f"vllm:prefix_cache_hits_total{labels} 5\nvllm:spec_decode_num_drafts_total{labels} 0\n"
    after = f"vllm:prefix_cache_hits_total{labels} 905\nvllm:spec_decode_num_drafts_total{labels} 70\n"
    profile = read_scrapes(BEFORE + before, AFTER + after)
    assert profile.metrics["engine/prefix_cache_hit_tokens"] == 900
    assert any("900 of 91300 prompt tokens came from a cache" in note for note in profile.notes)
    assert any("decoded speculatively (70 drafts)" in note for note in profile.notes)
    idle = read_scrapes(BEFORE + before, AFTER + before)
    assert not any("prefix cache" in note or "speculatively" in note for note in idle.notes)


def test_requests_that_end_with_their_first_token_have_no_decode_time():
    profile = read_scrapes(scraped(), scraped(10, 9130, 10, 1.2, 0.0))
    assert profile.times_ms == {"forward": (pytest.approx(120.0),)}
    assert profile.measured["new_tokens"] == 1


def test_engine_model_is_chosen_where_there_are_several():
    other = scraped(10, 100, 100, 1.0, 1.0, model="other")
    with pytest.raises(StagemeterError, match="several models"):
        read_scrapes(BEFORE + other, AFTER + other)
    profile = read_scrapes(BEFORE + other, AFTER + other, engine_model=MODEL)
    assert profile.metrics["engine/requests"] == 100
    with pytest.raises(StagemeterError, match=r"has no model 'othr'\. Did you mean 'other'"):
        read_scrapes(BEFORE + other, AFTER + other, engine_model="othr")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (AFTER, BEFORE, "went down since"),
        (BEFORE, BEFORE, "no request finished"),
        ("# HELP up x\nup 1\n", "# HELP up x\nup 1\n", "has no metrics of vLLM"),
        ("vllm:x 1\n", "vllm:x 1\n", "lacks vllm:request_prefill_time_seconds_sum"),
        ("vllm:x{ 1\n", AFTER, "not in Prometheus' text format"),
        (BEFORE, scraped(102, 93126, 52224, float("nan"), 408.0), "is nan"),
        (
            BEFORE + "process_start_time_seconds 100\n",
            AFTER + "process_start_time_seconds 200\n",
            "the server started after",
        ),
        (BEFORE, scraped(102.5, 93126, 52224, 13.0, 408.0), "is 102.5, which is no number of requests"),
        (BEFORE, scraped(1e30, 93126, 52224, 13.0, 408.0), "is 1e\\+30, which is no number of requests"),
        (BEFORE, scraped(102, 1826, 52224, 13.0, 408.0), "0 prompt tokens a request"),
    ],
)
def test_scrapes_that_say_nothing(first, second, message):
    with pytest.raises(StagemeterError, match=message):
        read_scrapes(first, second)


TWO_BEFORE, TWO_AFTER = (
    scraped(2, 1826, 1024, 1.0, 8.0, engines=2),
    scraped(102, 93126, 52224, 13.0, 408.0, engines=2),
)


def of_engine(page: str, engine: int, other: str) -> str:
    """A page with one engine as on another page."""
    label = f'engine="{engine}"'
    kept = [line for line in page.splitlines(keepends=True) if label not in line]
    return "".join([*kept, *(line for line in other.splitlines(keepends=True) if label in line)])


def test_engines_are_counted_and_an_idle_one_is_named():
    idle = of_engine(TWO_AFTER, 1, TWO_BEFORE)
    profile = read_scrapes(TWO_BEFORE, idle, seconds=10)
    assert profile.metrics["engine/requests"] == 50
    assert profile.metrics["engine/engines"] == 2
    assert profile.hardware == {"devices": "2", "devices_source": "one for each engine in the metrics"}
    assert "engine 1 finished no request; its devices still count" in profile.notes
    assert not any("finished no request" in note for note in read_scrapes(TWO_BEFORE, TWO_AFTER).notes)


def test_engines_of_another_model_on_the_page_are_not_counted():
    other = scraped(10, 100, 100, 1.0, 1.0, model="other", engines=2).replace('engine="0"', 'engine="2"')
    profile = read_scrapes(TWO_BEFORE + other, TWO_AFTER + other, engine_model=MODEL)
    assert profile.metrics["engine/engines"] == 2


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        # The sum over engines goes up all the same.
        (of_engine(TWO_BEFORE, 1, TWO_AFTER), of_engine(TWO_AFTER, 1, TWO_BEFORE), "of engine 1 went down since"),
        (TWO_BEFORE, AFTER, "engine 1 is on one of the two pages only"),
        (BEFORE, TWO_AFTER, "engine 1 is on one of the two pages only"),
        (BEFORE + BEFORE.partition("\n")[2], AFTER, "of one engine appears twice"),
        (BEFORE, scraped(102, 93126, 52224, 13.0, -408.0), "request_decode_time_seconds_sum is -408"),
        (BEFORE, scraped(102, 93126, 52224, 13.0, 1e18), "more than a century"),
        (
            BEFORE + f'vllm:prompt_tokens_created{{engine="0",model_name="{MODEL}"}} 100\n',
            AFTER + f'vllm:prompt_tokens_created{{engine="0",model_name="{MODEL}"}} 200\n',
            "engine 0 started after",
        ),
        (BEFORE, TWO_AFTER.replace("vllm:generation_tokens_total", "vllm:other", 1), "of engine 0. Give the /metrics"),
    ],
    ids=["restarted", "stopped", "started", "page twice", "negative", "century", "caught up", "half an engine"],
)
def test_engines_that_changed_in_between_are_refused(first, second, message):
    with pytest.raises(StagemeterError, match=message):
        read_scrapes(first, second)


def test_one_scrape_is_not_enough(tmp_path):
    (tmp_path / "one.txt").write_text(AFTER)
    with pytest.raises(StagemeterError, match="Give two"):
        read_profile(tmp_path / "one.txt", steps=1)


@pytest.fixture
def serve():
    """Serve answers, one after the other, on this machine; gives the address."""
    servers = []

    def start(*answers: tuple[int, str, str]) -> str:
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, kind, text = left.pop(0)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/metrics"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


TEXT = "text/plain; version=0.0.4; charset=utf-8"


def test_another_model_is_refused_before_the_wait(serve):
    def refuse(served: str) -> None:
        raise StagemeterError(f"model: {served}")

    with pytest.raises(StagemeterError, match=MODEL):
        scrape(serve((200, TEXT, BEFORE)), 3600, require=refuse)


def test_address_is_scraped_twice(serve):
    profile = scrape(serve((200, TEXT, BEFORE), (200, TEXT, AFTER)), 0.2)
    assert profile.times_ms["forward"] == (pytest.approx(120.0),)
    # Other work on the machine can only lengthen the wait.
    assert 0.2 <= profile.metrics["engine/seconds"] < 30


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, TEXT, ""), "the answer is 404"),
        ((200, "text/html", "<html>"), "the answer is text/html"),
        ((200, TEXT, "up 1\n"), "Give the /metrics of such a server"),
        ((200, TEXT, "vllm:x 1\n"), "Give the /metrics of a vLLM server"),
    ],
)
def test_address_of_something_else(serve, answer, message):
    with pytest.raises(StagemeterError, match=message):
        scrape(serve(answer), 0.1)


def test_address_at_which_nobody_answers(serve):
    with pytest.raises(StagemeterError, match=r"cannot be reached \(ConnectionError\)"):
        scrape("http://127.0.0.1:9/metrics", 0.1)
    with pytest.raises(StagemeterError, match="--interval 0: it is no time"):
        scrape("http://127.0.0.1:9/metrics", 0)


def test_an_answer_without_an_end_is_refused(serve, monkeypatch):
    monkeypatch.setattr("stagemeter.profiling.readers.engines.address.LARGEST_FILE", 1000)
    with pytest.raises(StagemeterError, match="the answer has more than 0 MiB"):
        scrape(serve((200, "text/plain", "x" * 2000)), 0.01)


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"])
def test_a_server_that_drips_is_given_up(beginning, monkeypatch):
    monkeypatch.setattr("stagemeter.profiling.readers.engines.address._WHOLE_TIMEOUT", 0.3)
    over = threading.Event()

    class Handler(BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                self.request.sendall(beginning or b"HTTP/1.1 200 OK\r\n")
                while not over.wait(0.05):
                    self.request.sendall(b"X: y\r\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StagemeterError, match="no whole answer within"):
            scrape(f"http://127.0.0.1:{server.server_address[1]}/metrics", 0.1)
        over.set()
        server.shutdown()
