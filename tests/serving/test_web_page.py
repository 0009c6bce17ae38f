import os
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.serving.recommender import Recommender

pytest.importorskip("onnxruntime")

from bert4rec_hf.serving.export import export_onnx  # noqa: E402

README = Path(__file__).parents[2] / "scripts" / "README.md"
ITEMS = ["item-0291", "item-0410", *(f"item-{number}" for number in range(29))]

WEB = os.environ.get("ONNXRUNTIME_WEB", "")
"""The folder dist/ of the npm package onnxruntime-web."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.skipif(not Path(WEB, "ort.min.js").is_file(), reason="needs ONNXRUNTIME_WEB")
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_page_of_the_readme_recommends_in_a_browser(tmp_path, precision):
    torch.manual_seed(0)
    config = BERT4RecConfig(
        vocab_size=len(ITEMS) + 2, hidden_size=32, intermediate_size=40, initializer_range=0.3
    )
    model = tmp_path / "model"
    BERT4RecForMaskedItemModeling(config).save_pretrained(model)
    build_vocabulary(ITEMS).save_pretrained(model)
    page = tmp_path / "page"
    export_onnx(model, page, k=5, precision=precision)
    for path in Path(WEB).glob("ort*"):
        shutil.copyfile(path, page / path.name)
    (html,) = re.findall(r"```html\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (page / "index.html").write_text(f"<!doctype html><body></body>{html}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=60000", f"http://127.0.0.1:{server.server_port}/"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    finally:
        server.shutdown()
    expected = Recommender.from_pretrained(model).recommend(["item-0410", "item-0291"], k=5)
    (text,) = re.findall(r"<body>(.*?)</body>", done.stdout, re.DOTALL)
    if precision == "int8":
        assert len(set(text.split()) & {each.item for each in expected}) >= 4
    else:
        assert text.split() == [each.item for each in expected]
