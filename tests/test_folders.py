"""Folders of strangers: nothing in them runs, nothing is asked for, no socket is opened."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MINI, ROOT
from dnp.errors import WeightsError
from dnp.sd.captioner import load_captioner
from dnp.sd.files import data_only
from experiments import world

CODE, ELSEWHERE, OUTSIDE = "which is never run", "from elsewhere", "not a file in its folder"
EVIL = """
import os
open(os.environ["MARKER"], "a").write("code of the folder ran")
from transformers import BlipConfig as Config, BlipForConditionalGeneration as Model
from transformers import BlipProcessor as Processor, BlipImageProcessor as Images
from transformers import BertTokenizer as Words
"""
MAP = {
    "AutoConfig": "evil.Config",
    "AutoModelForImageTextToText": "evil.Model",
    "AutoProcessor": "evil.Processor",
    "AutoImageProcessor": "evil.Images",
    "AutoTokenizer": ["evil.Words", None],
}
REMOTE = dict.fromkeys(MAP, "someone/model--evil.Evil")
INDEX = "model.safetensors.index.json"


def index(name):
    return {"metadata": {}, "weight_map": {"logit_scale": name, "text_decoder.x": "a.safetensors"}}


HOSTILE = {  # name: (folder of the miniature's, file, its new entries, what the error must say)
    "config": ("captioner", "config.json", {"model_type": "new", "auto_map": MAP}, CODE),
    "known kind": ("captioner", "config.json", {"auto_map": MAP}, CODE),
    "remote": ("captioner", "config.json", {"model_type": "new", "auto_map": REMOTE}, CODE),
    "remote of a known kind": ("captioner", "config.json", {"auto_map": REMOTE}, CODE),
    "nested": ("captioner", "config.json", {"text_config": {"auto_map": MAP}}, CODE),
    "in a list": ("captioner", "config.json", {"parts": [[{"auto_map": MAP}]]}, CODE),
    "processor": (
        "captioner",
        "processor_config.json",
        {"processor_class": "New", "auto_map": MAP},
        CODE,
    ),
    "image processor": ("captioner", "preprocessor_config.json", {"auto_map": MAP}, CODE),
    "remote processor": ("captioner", "processor_config.json", {"auto_map": REMOTE}, CODE),
    "tokenizer": (
        "captioner",
        "tokenizer_config.json",
        {"tokenizer_class": "New", "auto_map": MAP["AutoTokenizer"]},
        CODE,
    ),
    "generation": ("captioner", "generation_config.json", {"custom_generate": "someone/x"}, CODE),
    "pipeline": ("captioner", "config.json", {"custom_pipelines": {"x": {"impl": "evil.X"}}}, CODE),
    "another case": ("captioner", "Extra.JSON", {"auto_map": MAP}, CODE),
    "below": ("captioner", "qformer_tokenizer/tokenizer_config.json", {"auto_map": MAP}, CODE),
    "kernel": ("captioner", "config.json", {"attn_implementation": "someone/kernel"}, CODE),
    "flash": ("captioner", "config.json", {"_attn_implementation": "flash_attention_3"}, CODE),
    "kernel of a part": (
        "captioner",
        "config.json",
        {"attn_implementation": {"text_config": "someone/kernel"}},
        CODE,
    ),
    "backbone": ("captioner", "config.json", {"use_pretrained_backbone": True}, ELSEWHERE),
    "audio": (
        "captioner",
        "processor_config.json",
        {"audio_tokenizer": {"audio_tokenizer_name_or_path": "someone/x"}},
        ELSEWHERE,
    ),
    "adapter": ("captioner", "adapter_config.json", {"base_model_name_or_path": "a/b"}, ELSEWHERE),
    "quantised": ("captioner", "config.json", {"quantization_config": {"bits": 4}}, "quantised"),
    "index above": ("captioner", INDEX, index("../outside.safetensors"), OUTSIDE),
    "index of a disk": ("captioner", INDEX, index("/etc/outside.safetensors"), OUTSIDE),
    "index of Windows": ("captioner", INDEX, index("..\\outside.safetensors"), OUTSIDE),
    "index of a number": ("captioner", INDEX, index(5), OUTSIDE),
    "another config": (
        "captioner",
        "config.json",
        {"configuration_files": ["../config.4.0.0.json"]},
        OUTSIDE,
    ),
    "CLIP": ("clip", "config.json", {"model_type": "new", "auto_map": MAP}, CODE),
    "CLIP's tokenizer": ("clip", "tokenizer_config.json", {"auto_map": REMOTE}, CODE),
    "CLIP's index": ("clip", INDEX, index("../outside.safetensors"), OUTSIDE),
    "tokenizer of weights": ("tokenizer", "tokenizer_config.json", {"auto_map": MAP}, CODE),
    "remote one of weights": ("tokenizer", "tokenizer_config.json", {"auto_map": REMOTE}, CODE),
}
CHILD = """
import builtins, io, json, sys
touched = []
sys.addaudithook(lambda event, _: touched.append(event) if event.startswith("socket.") else None)
asked = builtins.input
builtins.input = lambda *question: (touched.append("input"), "y")[1]
sys.stdin = io.StringIO("y\\n" * 999)
import dnp
from dnp.sd.captioner import load_captioner
from dnp.evaluation import metrics
results = {}
for name, (kind, folder) in json.load(open(sys.argv[1])).items():
    touched.clear()
    try:
        if kind == "captioner":
            load_captioner(folder)
        elif kind == "clip":
            metrics.CLIPScorer(folder, ["{}"])
        elif kind == "weights' captioner":
            dnp.generate(dnp.load(folder), "a cat", "auto-dnp", steps=1)
        else:
            dnp.load(folder).tokenizer
        told = "opened"
    except dnp.DnpError as e:
        told = str(e)
    except Exception as e:
        told = "RAISED " + repr(e)
    results[name] = (told, list(touched), sys.stdin.tell())
json.dump(results, open(sys.argv[2], "w"))
"""


def whole(root, kind):
    """(folder, part): a copy of the miniature's captioner or CLIP, or of weights in its world for
    the others; with a file of code and a file beside it that an index could name."""
    if kind in ("captioner", "clip"):
        folder = part = shutil.copytree(MINI / kind, root / "copy")
    else:
        skip = shutil.ignore_patterns("training", "clip")
        folder = shutil.copytree(world(), root / "copy", ignore=skip)
        part = folder / ("captioner" if "captioner" in kind else "tokenizer")
    (part / "evil.py").write_text(EVIL)
    shutil.copy(MINI / "captioner" / "model.safetensors", root / "outside.safetensors")
    return folder, part


def root_of(root, name):
    (root / name).mkdir()
    return root / name


def change(path, entries):
    path.parent.mkdir(exist_ok=True)
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **entries}))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{name: (what was told, sockets and questions, characters read)}, all in one process."""
    cases, root = {}, tmp_path_factory.mktemp("hostile")
    for name, (kind, file, entries, _) in HOSTILE.items():
        folder, part = whole(root_of(root, name), kind)
        change(part / file, entries)
        if file == INDEX:
            (part / "model.safetensors").unlink()
        cases[name] = (kind, str(folder))
    for kind in ("captioner", "clip", "weights", "weights' captioner"):
        cases[f"plain {kind}"] = (kind, str(whole(root_of(root, f"plain {kind}"), kind)[0]))
    folder, part = whole(root_of(root, "own"), "weights' captioner")
    change(part / "config.json", {"model_type": "new", "auto_map": MAP})
    cases["weights' captioner"] = ("weights' captioner", str(folder))
    cases["no folder"] = ("captioner", "someone/model")
    cases["no CLIP folder"] = ("clip", "someone/model")
    for kind in ("captioner", "clip", "weights"):
        for file in sorted(p.name for p in whole(root_of(root, f"of {kind}"), kind)[1].iterdir()):
            folder, part = whole(root_of(root, f"{kind} less {file}"), kind)
            (part / file).unlink()
            cases[f"{kind} less {file}"] = (kind, str(folder))
    (root / "cases.json").write_text(json.dumps(cases))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS"))}
    environment |= {"MARKER": str(root / "marker"), "HF_HOME": str(root / "hub")}
    run = [sys.executable, "-c", CHILD, str(root / "cases.json"), str(root / "results.json")]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((root / "results.json").read_text())
    return results, (root / "marker").exists(), done.stdout + done.stderr


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_that_is_more_than_data_is_refused_in_a_sentence(opened, name):
    told, touched, read = opened[0][name]
    assert HOSTILE[name][3] in told and told.endswith(".") and len(told.split("\n")) == 1
    assert touched == [] and read == 0


def test_a_weights_folder_s_own_captioner_is_refused_too(opened):
    told, touched, read = opened[0]["weights' captioner"]
    assert CODE in told and touched == [] and read == 0


def test_names_that_are_no_folder_open_no_socket(opened):
    for name, sentence in (("no folder", "no captioner is there"), ("no CLIP folder", "no CLIP")):
        told, touched, read = opened[0][name]
        assert sentence in told and touched == [] and read == 0


def test_plain_folders_are_opened_without_a_socket_or_a_question(opened):
    plain = {name: result for name, result in opened[0].items() if name.startswith("plain")}
    assert len(plain) == 4
    assert all(result == ["opened", [], 0] for result in plain.values()), plain


def test_a_folder_that_lacks_a_file_opens_no_socket_for_it(opened):
    lacking = {name: result for name, result in opened[0].items() if " less " in name}
    assert len(lacking) > 12
    for name, (told, touched, read) in lacking.items():
        assert touched == [] and read == 0 and "RAISED" not in told, name


def test_no_code_of_any_folder_ran_and_nothing_was_asked(opened):
    assert not opened[1] and "y/N" not in opened[2]


def test_links_are_followed_for_caches_consist_of_them(tmp_path):
    (tmp_path / "links").mkdir()
    for path in (MINI / "captioner").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    (tmp_path / "links" / "nothing.json").symlink_to(tmp_path / "nowhere")
    data_only.check_folder(tmp_path / "links")
    (tmp_path / "evil.json").write_text(json.dumps({"auto_map": MAP}))
    (tmp_path / "links" / "extra.json").symlink_to(tmp_path / "evil.json")
    with pytest.raises(WeightsError, match=CODE):
        data_only.check_folder(tmp_path / "links")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_pipe_in_a_captioner_folder_does_not_hang(tmp_path, name):
    folder = shutil.copytree(MINI / "captioner", tmp_path / "copy")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(WeightsError, match=r"not a regular file|no captioner is there"):
        load_captioner(folder)


def test_json_nested_without_end_and_damaged_json_are_refused(tmp_path):
    for text in ("[" * 100_000, "{", b"\xff\xfe"):
        path = tmp_path / "config.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(WeightsError, match="cannot be read as JSON"):
            data_only.check_folder(tmp_path)


def test_words_of_a_vocabulary_and_empty_entries_are_no_code(tmp_path):
    vocabulary = {"auto_map": 7, "weight_map": 8, "quantization_config": 9}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    empty = {"auto_map": {}, "quantization_config": None, "use_pretrained_backbone": False}
    empty |= {"_attn_implementation": "sdpa", "attn_implementation": {"": None, "text": "eager"}}
    empty["cache_implementation"] = "static"
    (tmp_path / "config.json").write_text(json.dumps(empty))
    (tmp_path / INDEX).write_text(json.dumps(index("model-00001-of-00002.safetensors")))
    data_only.check_folder(tmp_path)


def test_a_captioner_that_is_fetched_is_checked_before_its_weights_are(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(name, revision=None, allow_patterns=(), ignore_patterns=()):
        asked.append((name, revision, "*.safetensors" in allow_patterns))
        assert not any(p in ("*", "*.py", "*.bin") for p in allow_patterns)
        folder = tmp_path / name / "c0ffee"
        if not folder.exists():
            shutil.copytree(MINI / "captioner", folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    load_captioner("some/one", allow_download=True)
    assert asked == [("some/one", None, False), ("some/one", "c0ffee", True)]
    change(Path(fetch("some/two")) / "config.json", {"auto_map": REMOTE})
    asked.clear()
    with pytest.raises(WeightsError, match=CODE):
        load_captioner("some/two", allow_download=True)
    assert asked == [("some/two", None, False)]


def test_configs_that_do_not_fit_each_other_are_told_when_a_captioner_is_opened(tmp_path):
    folder = shutil.copytree(MINI / "captioner", tmp_path / "copy")
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["image_mean"] = [0.5] * 4
    (folder / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(WeightsError, match="it cannot caption"):
        load_captioner(folder)
