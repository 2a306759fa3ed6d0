"""Trace an application that asks a served model: FLOPs, share of MFU and cost of each call, and sums of the trace.

The server is a stub. Give base_url= the address of a real one, such as vLLM with --enable-prompt-tokens-details.
"""

import base64
import io

import mlflow
from openai import OpenAI
from PIL import Image
from stub_server import stub_server, usage

import stagemeter

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"

mlflow.set_experiment("page reader")
mlflow.openai.autolog()
mlflow.tracing.configure(span_processors=[stagemeter.trace_processor(MODEL, device="H100-SXM", price_per_hour=2.5)])


@mlflow.trace
def read_page(client: OpenAI, page: Image.Image) -> str:
    """Read a page, then ask about it: the second prompt begins with the first, which the server holds in its cache."""
    data = io.BytesIO()
    page.save(data, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    asked = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "Read the page."}]
    messages = [{"role": "user", "content": asked}]
    text = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Which sum?"}]
    return client.chat.completions.create(model=MODEL, messages=messages).choices[0].message.content


# What vLLM answers for this page: 4,956 image tokens, of which it finds whole blocks of 16 again.
usages = [usage(4982, 400, cached_tokens=0), usage(5401, 20, cached_tokens=5376)]
with stub_server(usages, seconds=0.3) as address:
    read_page(OpenAI(base_url=address, api_key="none", max_retries=0), Image.new("RGB", (1654, 2339), "white"))

mlflow.flush_trace_async_logging()
trace = mlflow.get_trace(mlflow.get_last_active_trace_id())
for span in trace.search_spans(span_type="CHAT_MODEL"):
    seen = span.attributes
    print(f"{seen['stagemeter.flops.total']:,} FLOPs, {seen['stagemeter.mfu_share']:.1%} of the device's peak")
print(trace.info.tags["stagemeter"])
print(f"cost: {trace.info.cost['total_cost']:.6f}")
