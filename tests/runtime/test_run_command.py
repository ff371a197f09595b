"""`edgewise run` as a user has it: a process of its own, on real bundles of every task."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from filelock import FileLock

import edgewise
from edgewise.assets import asset_path, cache_folder
from edgewise.data import Row
from edgewise.types import TASKS, Task

PLACE = cache_folder() / "tests" / "run"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LABELS = {"id2label": {0: "B-PER", 1: "I-PER"}, "label2id": {"B-PER": 0, "I-PER": 1}}
MINILM, SMOLLM2, CHEMISTRY = "all-minilm-l6-v2", "smollm2", "rxn-albert"


MODELS: dict[Task, tuple[str, Callable[[int], Any]]] = {
    "token-classification": (MINILM, lambda v: hf.BertForTokenClassification(hf.BertConfig(v, **SMALL, **LABELS))),
    "feature-extraction": (MINILM, lambda v: hf.BertModel(hf.BertConfig(v, **SMALL))),
    "fill-mask": (CHEMISTRY, lambda _: hf.AutoModelForMaskedLM.from_pretrained(asset_path(CHEMISTRY))),
    "text-generation": (
        SMOLLM2,
        lambda v: hf.LlamaForCausalLM(
            hf.LlamaConfig(v, **SMALL, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=2)
        ),
    ),
    "text2text-generation": (
        MINILM,
        lambda v: hf.T5ForConditionalGeneration(
            hf.T5Config(
                v, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0, eos_token_id=102
            )
        ),
    ),
    "image-classification": (
        "",
        lambda _: hf.ViTForImageClassification(hf.ViTConfig(**SMALL, image_size=28, patch_size=7, num_labels=6)),
    ),
    "image-feature-extraction": ("", lambda _: hf.ViTModel(hf.ViTConfig(**SMALL, image_size=28, patch_size=7))),
}
"""Task -> the asset whose tokenizer it has, and a maker of a small model for a vocabulary of that size."""


def checkpoint(task: Task, folder: Path) -> Path:
    """Written once: weights drawn anew would be another checkpoint."""
    asset, make = MODELS[task]
    if (folder / "model.safetensors").is_file():
        return folder
    tokenizer = hf.AutoTokenizer.from_pretrained(asset_path(asset)) if asset else None
    torch.manual_seed(4)
    make(len(tokenizer) if tokenizer else 0).save_pretrained(folder)
    (tokenizer or hf.ViTImageProcessor(size={"height": 28, "width": 28})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bundle_of(int8_bundle: Path, review_rows: tuple[Row, ...]) -> Callable[[Task], str]:
    """Task -> a bundle for it; made once, and kept beside the assets."""
    from edgewise.exporter import export

    def make(task: Task) -> str:
        if task == "text-classification":
            return str(int8_bundle)
        PLACE.mkdir(parents=True, exist_ok=True)
        with FileLock(PLACE / "lock"):
            source = checkpoint(task, PLACE / task / "checkpoint")
            (done,) = export(source, ["fp32"], out=PLACE / task, task=task)
        assert done.bundle is not None, done.reason
        return str(done.bundle.path)

    return make


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    import numpy as np
    from PIL import Image

    file = tmp_path_factory.mktemp("images") / "a picture.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)).save(file)
    return str(file)


def process(*args: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """As a user runs it."""
    command = [sys.executable, "-m", "edgewise", "run", *args]
    done = subprocess.run(
        command, input=stdin, capture_output=True, env={**os.environ, **environment}, timeout=120, check=False
    )
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def run(*args: str, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
    """The same in this process, which is faster."""
    from edgewise.cli import main

    data = stdin.encode() if isinstance(stdin, str) else stdin
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(data))
    try:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as errors:
            try:
                code: Any = main(["run", *args])
            except SystemExit as left:  # argparse's way
                code = left.code
    finally:
        sys.stdin = before
    return subprocess.CompletedProcess(args, code, out.getvalue(), errors.getvalue())


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


INPUTS: dict[Task, tuple[str, str]] = {
    "text-classification": ("a fine film", "a dull mess"),
    "token-classification": ("Anna lives in Zürich.", "Bob"),
    "feature-extraction": ("a fine film", "ein schöner Film"),
    "fill-mask": ("CC[MASK]", "C[MASK]O"),
    "text-generation": ("Once upon a time", "The 😀"),
    "text2text-generation": ("translate this", "and that"),
}
KEYS: dict[Task, str] = {
    "text-classification": "label",
    "token-classification": "entities",
    "feature-extraction": "vector",
    "fill-mask": "fills",
    "text-generation": "generated_text",
    "text2text-generation": "generated_text",
    "image-classification": "labels",
    "image-feature-extraction": "vector",
}
SHORT = dict.fromkeys(("text-generation", "text2text-generation"), ("--max-new-tokens", "8"))


# ---- every task


@pytest.mark.parametrize("task", TASKS)
def test_every_task_answers_arguments_and_lines(bundle_of, picture: str, task: Task) -> None:
    bundle, more = bundle_of(task), SHORT.get(task, ())
    texts = INPUTS.get(task, (picture, picture))
    shown = run(bundle, *texts, *more)
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in texts:
        assert text in shown.stdout
    by_argument = rows_of(run(bundle, *texts, *more, "--json"))
    by_line = rows_of(run(bundle, *more, stdin="\n".join(texts)))
    assert by_argument == by_line
    key = "image" if "image" in task else "text"
    assert [row[key] for row in by_line] == list(texts)
    assert all(set(row) == {key, KEYS[task]} | ({"score"} if KEYS[task] == "label" else set()) for row in by_line)
    as_objects = "\n".join(json.dumps({key: text}) for text in texts)
    assert rows_of(run(bundle, *more, "--input-format", "json", stdin=as_objects)) == by_line
    as_strings = "\n".join(json.dumps(text) for text in texts)
    assert rows_of(run(bundle, *more, "--input-format", "json", stdin=as_strings)) == by_line


@pytest.mark.parametrize("task", TASKS)
def test_every_task_in_a_process_of_its_own(bundle_of, picture: str, task: Task) -> None:
    args = (bundle_of(task), INPUTS.get(task, (picture,))[0], "--json", *SHORT.get(task, ()))
    assert rows_of(process(*args)) == rows_of(run(*args))


@pytest.mark.parametrize("task", TASKS)
def test_the_command_says_what_a_call_says(bundle_of, picture: str, task: Task) -> None:
    (row, _) = rows_of(run(bundle_of(task), "--json", *INPUTS.get(task, (picture, picture)), *SHORT.get(task, ())))
    first = INPUTS.get(task, (picture,))[0]
    with edgewise.load(bundle_of(task)) as model:
        if task == "text-classification":
            assert {"label": row["label"], "score": row["score"]} == model(first)[0]
        elif task == "token-classification":
            called = model(first, aggregation_strategy="simple")
            assert [(e["word"], e["start"]) for e in row["entities"]] == [(e["word"], e["start"]) for e in called]
        elif task == "feature-extraction":
            assert row["vector"] == model(first).tolist()
        elif task == "image-feature-extraction":
            assert row["vector"] == model.vectors([first])[0].tolist()
        elif task == "fill-mask":
            assert [f["token"] for f in row["fills"]] == [f["token"] for f in model(first)]
        elif task == "image-classification":
            assert row["labels"] == model(first)
        else:
            options = {"return_full_text": False} if task == "text-generation" else {}
            assert row["generated_text"] == model(first, max_new_tokens=8, **options)[0]["generated_text"]


@pytest.mark.parametrize("task", TASKS)
def test_placement_time_and_check(bundle_of, picture: str, task: Task) -> None:
    bundle = bundle_of(task)
    placed = run(bundle, "--placement")
    assert placed.returncode == 0, placed.stderr
    assert all("\tCPUExecutionProvider\t" in line for line in placed.stdout.splitlines())
    timed = run(bundle, INPUTS.get(task, (picture,))[0], "--time", *SHORT.get(task, ()))
    for word in ("load ", "imports ", "session ", "first answer after ", "1 answers in "):
        assert word in timed.stderr
    with edgewise.load(bundle) as model:
        golden = len(model.bundle.manifest.golden)
    checked = run(bundle, "--check")
    if golden:
        assert checked.returncode == 0, checked.stderr
        assert f"passed: {golden} inputs, 0 changed" in checked.stdout
    else:
        assert (checked.returncode, "no golden answers" in checked.stderr) == (2, True)


# ---- options of single tasks


def test_labels(bundle_of, picture: str) -> None:
    film = bundle_of("text-classification")
    assert len(rows_of(run(film, "fine", "--top-k", "2", "--json"))[0]["labels"]) == 2
    strict = rows_of(run(film, "a fine film", "--threshold", "0.9999", "--json"))
    assert strict[0]["label"] == "negative"
    (one,) = rows_of(run(bundle_of("image-classification"), picture, "--top-k", "1", "--json"))
    assert set(one) == {"image", "label", "score"}


def test_pairs_come_as_two_texts_with_a_tab_or_as_json(bundle_of) -> None:
    film = bundle_of("text-classification")
    (by_argument,) = rows_of(run(film, "a film", "is it good?", "--pair", "--json"))
    (by_line,) = rows_of(run(film, "--pair", stdin="a film\tis it good?\n"))
    (by_object,) = rows_of(
        run(film, "--input-format", "json", stdin='{"text": "a film", "text_pair": "is it good?"}\n')
    )
    assert by_argument == by_line == by_object
    with edgewise.load(film) as model:
        assert by_argument["score"] == model({"text": "a film", "text_pair": "is it good?"})["score"]


def test_entities_by_token(bundle_of) -> None:
    (row,) = rows_of(run(bundle_of("token-classification"), "Anna lives", "--aggregation", "none", "--json"))
    assert {"entity", "score", "index", "word", "start", "end"} == set(row["entities"][0])


def test_text_is_drawn_the_same_for_the_same_seed(bundle_of) -> None:
    bundle = bundle_of("text-generation")
    drawn = [
        rows_of(run(bundle, "Once", "--json", "--max-new-tokens", "8", "--temperature", "1.5", "--seed", seed))
        for seed in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = run(bundle, "Once", "--json", *SHORT["text-generation"])
    assert rows_of(run(bundle, "Once", "--json", *SHORT["text-generation"], "--temperature", "0")) == rows_of(greedy)


@pytest.mark.parametrize("task", ["text-generation", "text2text-generation"])
def test_a_stream_is_the_same_text(bundle_of, task: Task) -> None:
    bundle, texts = bundle_of(task), INPUTS[task]
    streamed = run(bundle, *texts, "--stream", *SHORT[task])
    assert streamed.returncode == 0, streamed.stderr
    with edgewise.load(bundle) as model:
        written = model.predict(list(texts), max_new_tokens=8)
    assert streamed.stdout == "".join(one.text + "\n" for one in written)


def test_a_chat(bundle_of) -> None:
    bundle = bundle_of("text-generation")
    more = ("--max-new-tokens", "8")
    (short,) = rows_of(run(bundle, "Hello", "--chat", "--system", "Be brief.", "--json", *more))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    line = json.dumps({"messages": messages})
    (full,) = rows_of(run(bundle, "--input-format", "json", *more, stdin=line))
    assert short == {"text": "Hello", "generated_text": full["generated_text"]}
    assert full["messages"] == messages
    with edgewise.load(bundle) as model:
        assert full["generated_text"] == model(messages, max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    streamed = run(bundle, "Hello", "--chat", "--system", "Be brief.", "--stream", *more)
    assert streamed.stdout.strip() == full["generated_text"].strip()


# ---- many lines, and people at a terminal


def test_answers_keep_the_order_of_many_lines(bundle_of, review_rows: tuple[Row, ...], tmp_path: Path) -> None:
    file = tmp_path / "reviews.txt"
    texts = [row.text for row in review_rows[:200]]
    file.write_text("\n".join(texts), encoding="utf-8")
    film = bundle_of("text-classification")
    alone = rows_of(run(film, "--file", str(file), "--parallel", "1"))
    assert [row["text"] for row in alone] == texts
    assert rows_of(run(film, "--file", str(file), "--parallel", "3", "--threads", "1")) == alone
    batched = rows_of(run(film, "--file", str(file), "--batch-size", "7"))
    assert [row["text"] for row in batched] == texts


def test_a_bad_line_is_named_and_those_before_it_are_answered(bundle_of) -> None:
    film = bundle_of("text-classification")
    for bad, form, message in (
        (b"\xff\xfe", "text", "line 4: not UTF-8"),
        (b"{", "json", "line 4: no JSON"),
        (b'{"txt": "a"}', "json", "line 4: a JSON object of txt; expected"),
        (b'{"text": 3}', "json", "line 4: text is 3; expected"),
        (b"[]", "json", "line 4: a JSON object of list; expected"),
        (b'"\\ud800"', "json", "line 4: the text '\\ud800' has a lone surrogate"),
    ):
        good = [f'"text {i}"' if form == "json" else f"text {i}" for i in range(6)]
        lines = [line.encode() for line in good[:3]] + [bad] + [line.encode() for line in good[3:]]
        done = run(film, "--input-format", form, stdin=b"\n".join(lines))
        assert done.returncode == 2
        assert f"standard input, {message}" in done.stderr
        assert "Traceback" not in done.stderr
        assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["text 0", "text 1", "text 2"]


def test_what_was_cut_is_said_on_standard_error(bundle_of) -> None:
    for task in ("text-classification", "token-classification", "feature-extraction"):
        bundle = bundle_of(task)
        done = run(bundle, "short", "word " * 100, "another " * 100, "--max-length", "16", "--json")
        assert len(rows_of(done)) == 3
        assert done.stderr.count("edgewise: warning: ") == 1
        assert "longer than 16 tokens" in done.stderr
    done = run(bundle_of("text-classification"), "word " * 100, "--max-length", "16", "--windows", "mean", "--json")
    assert (len(rows_of(done)), done.stderr) == (1, "")


class Terminal:
    """A process whose input, output and errors are a terminal."""

    def __init__(self, *args: str) -> None:
        self.end, inside = pty.openpty()
        command = [sys.executable, "-m", "edgewise", "run", *args]
        self.process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside)
        os.close(inside)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def wait_for(self, word: str, seconds: float = 60) -> None:
        limit = time.monotonic() + seconds
        while word not in self.seen:
            assert time.monotonic() < limit, f"{word!r} did not come: {self.seen!r}"
            if select.select([self.end], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.end, 4096).decode(errors="replace")
                except OSError:  # the process is gone
                    assert word in self.seen, self.seen

    def close(self) -> int:
        self.type("\x04")
        code = self.process.wait(timeout=60)
        os.close(self.end)
        return code


def test_at_a_terminal_every_line_is_answered_at_once(bundle_of) -> None:
    terminal = Terminal(bundle_of("text-classification"))
    terminal.wait_for("end with Ctrl-D")
    for text, label in (("a wonderful film", "positive"), ("a dull mess", "negative")):
        terminal.type(f"{text}\n")
        terminal.wait_for(f"{label}\t")
    assert terminal.close() == 0


def test_at_a_terminal_a_chat_goes_on(bundle_of) -> None:
    bundle = bundle_of("text-generation")
    chat: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    terminal = Terminal(bundle, "--chat", "--system", "Be brief.", "--max-new-tokens", "5")
    terminal.wait_for("end with Ctrl-D")
    with edgewise.load(bundle) as model:
        for said in ("Hello", "Why?"):
            chat.append({"role": "user", "content": said})
            answer = model.predict([chat], max_new_tokens=5)[0].text
            chat.append({"role": "assistant", "content": answer})
            terminal.type(f"{said}\n")
            terminal.wait_for(answer.strip().splitlines()[-1])
    assert terminal.close() == 0


def test_through_a_pipe_one_call_at_a_time_answers_at_once(bundle_of) -> None:
    command = [sys.executable, "-m", "edgewise", "run", bundle_of("text-classification"), "--parallel", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        for text in ("a wonderful film", "a dull mess"):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text
        process.stdin.close()
    assert process.returncode == 0


def test_a_reader_that_leaves_ends_it_in_silence(bundle_of) -> None:
    film = bundle_of("text-classification")
    command = f"yes 'a fine film' | {sys.executable} -m edgewise run {film} | head -n 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""


def test_a_terminal_without_the_characters_shows_their_codes(bundle_of) -> None:
    done = process(bundle_of("text-classification"), "schön 😀", PYTHONIOENCODING="ascii")
    assert (done.returncode, "sch\\xf6n \\U0001f600" in done.stdout) == (0, True)


# ---- mistakes


@pytest.mark.parametrize(
    ("task", "args", "message"),
    [
        ("text-classification", ["x", "--stream"], "--stream is for text-generation and text2text-generation;"),
        ("text-classification", ["x", "--chat"], "--chat is for text-generation;"),
        ("text-classification", ["x", "--aggregation", "max"], "--aggregation is for token-classification;"),
        ("token-classification", ["x", "--top-k", "3"], "is for token-classification: leave it out"),
        ("feature-extraction", ["x", "--temperature", "1"], "--temperature is for text-generation"),
        ("image-classification", ["x", "--max-length", "9"], "--max-length is for models of text;"),
        ("fill-mask", ["x", "--pair"], "--pair is for text-classification and feature-extraction;"),
        ("fill-mask", ["no mask"], "put [MASK] where"),
        ("image-classification", ["nowhere.png"], "nowhere.png: cannot be read"),
        ("image-classification", ["/dev/null"], "/dev/null"),
        ("image-classification", ["README.md"], "README.md"),
        ("text-classification", ["x", "--top-k", "0"], "top_k is 0"),
        ("text-classification", ["x", "--threads", "0"], "threads is 0"),
        ("text-classification", ["x", "--parallel", "0"], "parallel is 0"),
        ("text-classification", ["x", "--batch-size", "0"], "batch_size is 0"),
        ("text-classification", ["x", "--max-length", "99999"], "max_length is 99999"),
        ("text-classification", ["x", "--provider", "cuta"], "did you mean 'cuda'"),
        ("text-classification", ["x", "--provider", "cuda,openvino"], "none of the providers runs"),
        ("text-classification", ["x", "--provider", "cuda,"], "expected names with a comma between"),
        ("text-classification", ["x", "--expect", "sha256:0"], "expected sha256:0"),
        ("text-classification", ["x", "--verify", "all"], "invalid choice"),
        ("text-classification", ["x", "--pair"], "--pair takes two TEXTs"),
        ("text-classification", ["x", "--system", "y"], "give --chat"),
        ("text-classification", ["x", "--check"], "leave the texts out"),
        ("text-classification", ["x", "--file", "y"], "not both"),
        ("text-classification", ["--file", "."], "cannot be read"),
        ("text-classification", ["--file", "nowhere.txt"], "nowhere.txt: no such file"),
        ("text-generation", ["x", "--stream", "--json"], "leave --json out"),
        ("text-generation", ["x", "--max-new-tokens", "0"], "max_new_tokens is 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(bundle_of, task: Task, args: list[str], message: str) -> None:
    done = run(bundle_of(task), *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_fallback_takes_the_cpu(bundle_of) -> None:
    film = bundle_of("text-classification")
    for more in (("--provider", "cuda", "--fallback"), ("--provider", "cuda,cpu")):
        assert rows_of(run(film, "a fine film", "--json", *more)) == rows_of(run(film, "a fine film", "--json"))


def test_nothing_to_answer(bundle_of) -> None:
    done = run(bundle_of("text-classification"), "--time")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no answers" in done.stderr


def test_the_parser_imports_nothing_heavy() -> None:
    code = "import sys; from edgewise.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'numpy', 'onnxruntime', 'tokenizers', 'PIL', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_options_of_single_tasks_are_known_without_their_module() -> None:
    from edgewise.run_answers import OPTIONS
    from edgewise.verbs_run import FOR_SOME_TASKS

    assert set(FOR_SOME_TASKS) == set(OPTIONS)


# ---- docs/embed.md

ROOT = Path(__file__).parents[2]
BUNDLES: dict[str, Task] = {
    "reviews": "text-classification",
    "names": "token-classification",
    "vectors": "feature-extraction",
    "masks": "fill-mask",
    "writer": "text-generation",
    "translator": "text2text-generation",
    "clothes": "image-classification",
    "pictures": "image-feature-extraction",
}
"""What the page calls its bundles."""


def test_the_page_says_what_runs(bundle_of, picture: str, tmp_path: Path, monkeypatch: Any) -> None:
    page = (ROOT / "docs" / "embed.md").read_text(encoding="utf-8")
    application, *examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert application == (ROOT / "examples" / "embed.py").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, task in BUNDLES.items():
        Path(name).symlink_to(bundle_of(task))
    Path("photo.png").symlink_to(picture)
    Path("reviews.txt").write_text("a fine film\na dull mess\n")
    names: dict[str, Any] = {"edgewise": edgewise}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing is cut in passing
        for example in examples:
            exec(compile(example, "docs/embed.md", "exec"), names)
    loaded = set(re.findall(r'edgewise\.load\("(\w+)"', "".join(examples)))
    assert (loaded, set(BUNDLES.values())) == (set(BUNDLES), set(TASKS))


def test_the_small_application(bundle_of, picture: str, tmp_path: Path) -> None:
    example = str(ROOT / "examples" / "embed.py")
    lines = b"a wonderful film\nbro\xffken\na dull mess\n" + b"a film\n" * 200
    command = [sys.executable, example, bundle_of("text-classification")]
    done = subprocess.run(command, input=lines, capture_output=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [row["answer"][0]["label"] for row in found[:2]] == ["positive", "negative"]
    assert len(found) == 202
    assert done.stderr.count(b"not answered: ") == 1
    pictures = f"{picture}\n{tmp_path}/nowhere.png\n".encode()
    command[2] = bundle_of("image-classification")
    done = subprocess.run(command, input=pictures, capture_output=True, check=False)
    assert len(json.loads(done.stdout)["answer"]) == 5
    assert b"nowhere.png" in done.stderr
    command[2] = bundle_of("feature-extraction")
    done = subprocess.run(command, input=b"a film\n", capture_output=True, check=True)
    assert isinstance(json.loads(done.stdout)["answer"][0], float)
    command[2] = str(tmp_path)
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (done.returncode, b"is no bundle" in done.stderr) == (2, True)
