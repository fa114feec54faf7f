"""Tokenizer files: what the reference wrote, old and new; what we write; and what no tokenizer may be read from."""

import copy
import dataclasses
import json
import shutil
import time
import tracemalloc

import pytest

from distilbert.checkpoint import manifest, safely
from distilbert.errors import DistilBertError, TokenizerError
from distilbert.tokenization import TOKENIZER_FILES
from distilbert.tokenization.files import TokenizerContent, read_tokenizer, tokenizer_files
from distilbert.tokenization.options import SPECIAL_NAMES, UNLIMITED, AddedToken, TokenizerOptions
from distilbert.tokenization.vocabulary import MAX_TOKENS, MAX_VOCABULARY_BYTES, read_vocabulary
from distilbert.tokenization.writing import write_tokenizer
from tests.support import DATA

GOLDENS = {folder.name: folder for folder in sorted((DATA / "tokenizers").iterdir())}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s"]
MASK = "<mask>"
SPECIAL = {i: AddedToken(text, normalized=False, special=True) for i, text in enumerate(WORDS) if text.startswith("[")}
CONTENT = TokenizerContent({word: i for i, word in enumerate(WORDS)}, SPECIAL, TokenizerOptions())


@pytest.fixture
def folder(tmp_path):
    """A folder with files: folder({name: bytes, text or JSON}), or with those of a golden."""

    def make(files=None, golden=None):
        place = tmp_path / "tokenizer"
        shutil.rmtree(place, ignore_errors=True)
        if golden:
            shutil.copytree(GOLDENS[golden], place)
        place.mkdir(exist_ok=True)
        for name, content in ({"vocab.txt": "\n".join(WORDS)} if files is None else files).items():
            data = content if isinstance(content, bytes | str) else json.dumps(content)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return place

    return make


def refused(place):
    with pytest.raises(TokenizerError) as caught:
        read_tokenizer(place)
    text = str(caught.value)
    assert text.startswith(str(place)[:200])
    assert text.isprintable()
    assert len(text) <= 500
    return text


def changed(golden, name, change):
    content = json.loads((GOLDENS[golden] / name).read_text())
    change(content)
    return {name: content}


def test_there_are_goldens_of_each_version_and_class():
    assert {name.split("-", 1)[1] for name in GOLDENS} == {"v4-slow", "v4-fast", "v5"}
    assert len(GOLDENS) == 15


@pytest.mark.parametrize("name", GOLDENS)
def test_what_the_reference_saved_is_what_it_finds_itself(name):
    expected = json.loads((GOLDENS[name] / "expected.json").read_text())
    vocabulary, added, options = read_tokenizer(GOLDENS[name])
    assert {**vocabulary, **{token.content: i for i, token in added.items()}} == expected["vocabulary"]
    assert {str(i): dataclasses.asdict(token) for i, token in added.items()} == expected["added"]
    assert {key: getattr(options, key) for key in SPECIAL_NAMES} == expected["special"]
    limit = expected["model_max_length"]
    assert options.model_max_length == (None if limit >= UNLIMITED else limit)
    names = ("do_lower_case", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
    assert [getattr(options, key) for key in names if key in expected] == [
        expected[key] for key in names if key in expected
    ]
    case = name.split("-")[0]
    assert (options.strip_accents, options.tokenize_chinese_chars) == (
        (False, False) if case == "left" else (None, True)
    )
    assert options.additional_special_tokens == (("<e1>", "<e2>") if case == "added" else ())


@pytest.mark.parametrize("name", GOLDENS)
def test_what_we_wrote_is_what_we_read(name, tmp_path):
    content = read_tokenizer(GOLDENS[name])
    write_tokenizer(content, tmp_path / "out")
    assert read_tokenizer(tmp_path / "out") == content
    assert set(manifest.read(tmp_path / "out")) == {path.name for path in (tmp_path / "out").iterdir()} - {
        manifest.MANIFEST_FILE
    }
    (tmp_path / "out" / manifest.MANIFEST_FILE).unlink()
    (tmp_path / "out" / "tokenizer.json").unlink()  # vocab.txt and the rest say the same
    assert read_tokenizer(tmp_path / "out") == content
    options = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    del options["added_tokens_decoder"]
    (tmp_path / "out" / "tokenizer_config.json").write_text(json.dumps(options))
    old = read_tokenizer(tmp_path / "out")  # as versions before 4.34 wrote them: flags of what is not special are lost
    assert (old.vocabulary, old.options, list(old.added_tokens)) == (*content[::2], list(content.added_tokens))
    assert [t for t in old.added_tokens.values() if t.special] == [
        t for t in content.added_tokens.values() if t.special
    ]


def test_a_file_of_the_reference_is_written_as_the_reference_does(tmp_path):
    write_tokenizer(read_tokenizer(GOLDENS["added-v4-fast"]), tmp_path)
    for name in ("vocab.txt", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
        theirs = (GOLDENS["added-v4-fast"] / name).read_text()
        ours = (tmp_path / name).read_text()
        assert (ours == theirs) if name == "vocab.txt" else (json.loads(ours) == json.loads(theirs)), name
    theirs, ours = (
        json.loads((place / "tokenizer_config.json").read_text()) for place in (GOLDENS["added-v4-fast"], tmp_path)
    )
    shared = theirs.keys() & ours.keys()
    assert theirs.keys() - shared == {"do_basic_tokenize", "never_split", "extra_special_tokens", "model_max_length"}
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}


# What is said in several places


def test_options_are_those_of_the_config_then_of_tokenizer_json(folder):
    plain = {name: (GOLDENS["cased-v4-fast"] / name).read_bytes() for name in ("tokenizer.json", "vocab.txt")}
    assert read_tokenizer(folder(plain)).options.do_lower_case is False
    options = {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False}
    found = read_tokenizer(folder({**plain, "tokenizer_config.json": options})).options
    assert (found.do_lower_case, found.strip_accents, found.tokenize_chinese_chars) == (True, False, False)


def test_sides_are_also_taken_from_padding_and_truncation_and_nothing_else_is(folder):
    huge = {"strategy": {"Fixed": 50_000_000}, "direction": "Left", "pad_to_multiple_of": 1 << 40, "pad_id": 9}
    cut = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 1 << 62}
    files = changed("plain-v4-fast", "tokenizer.json", lambda v: v.update(padding=huge, truncation=cut))
    options = read_tokenizer(folder(files)).options
    assert (options.padding_side, options.truncation_side, options.model_max_length) == ("left", "left", None)
    files["tokenizer_config.json"] = {"padding_side": "right"}
    options = read_tokenizer(folder(files)).options
    assert (options.padding_side, options.truncation_side) == ("right", "left")


def test_the_tokens_around_a_text_are_those_of_the_template_unless_the_config_names_others(folder):
    named = {"pad_token": "<pad>", "mask_token": "<mask>"}
    files = changed("custom-v4-fast", "tokenizer.json", lambda v: None) | {"tokenizer_config.json": named}
    options = read_tokenizer(folder(files)).options
    assert (options.cls_token, options.sep_token, options.unk_token) == ("<s>", "</s>", "<unk>")
    files["tokenizer_config.json"] = {**named, "cls_token": "the"}
    found = read_tokenizer(folder(files))
    assert found.options.cls_token == WORDS[5]
    assert found.added_tokens[found.vocabulary["the"]].special


@pytest.mark.parametrize("decoder", [True, False])
def test_old_files_count_only_without_a_decoder(folder, decoder):
    files = {
        "vocab.txt": "\n".join(WORDS),
        "tokenizer_config.json": {"mask_token": "[MASK]", "additional_special_tokens": ["##s"]}
        | ({"added_tokens_decoder": {}} if decoder else {}),
        "special_tokens_map.json": {
            "mask_token": {"content": "cat", "lstrip": True},
            "additional_special_tokens": ["<b>", "the"],
        },
        "added_tokens.json": {"<a>": 8, "<b>": 9},
    }
    found = read_tokenizer(folder(files))
    if decoder:
        assert found.options == TokenizerOptions(additional_special_tokens=("##s",))
        assert found.added_tokens == {**SPECIAL, 7: AddedToken("##s", normalized=False, special=True)}
        return
    assert found.options.mask_token == WORDS[6]
    assert found.options.additional_special_tokens == ("##s", "<b>", "the")
    assert found.added_tokens[6] == AddedToken("cat", lstrip=True, normalized=False, special=True)
    assert found.added_tokens[8] == AddedToken("<a>")
    assert found.added_tokens[9] == AddedToken("<b>", normalized=False, special=True)
    assert found.added_tokens[5].special
    assert 4 not in found.added_tokens  # "[MASK]" is a word like others now


def test_the_decoder_says_more_than_tokenizer_json_and_both_add(folder):
    decoder = {
        "4": {"content": "[MASK]"},
        "5": {"content": "the", "single_word": True},
        "69": {"content": "newword", "lstrip": True},
    }
    files = changed("added-v4-fast", "tokenizer.json", lambda v: None)
    found = read_tokenizer(folder(files | {"tokenizer_config.json": {"added_tokens_decoder": decoder}}))
    assert found.added_tokens[5] == AddedToken("the", single_word=True)
    assert found.added_tokens[69] == AddedToken("newword", lstrip=True)
    assert found.added_tokens[4] == AddedToken("[MASK]", normalized=True, special=True)  # it is special by its name
    assert found.added_tokens[73].content == "<e2>"


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_further_special_tokens_of_both_versions(folder, key):
    config = {
        key: ["cat", {"content": "<e>", "rstrip": True}, "<f>"],
        "mask_token": {"content": "[MASK]", "lstrip": True},
    }
    found = read_tokenizer(folder({"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": config}))
    assert found.options.additional_special_tokens == ("cat", "<e>", "<f>")
    assert found.added_tokens[6].special
    assert found.added_tokens[9] == AddedToken("<f>", normalized=False, special=True)
    assert found.added_tokens[8] == AddedToken("<e>", rstrip=True, normalized=False, special=True)  # the next free id
    assert found.added_tokens[4].lstrip
    named = {"extra_special_tokens": {"image_token": "<e>"}, "bos_token": "cat"}
    found = read_tokenizer(folder({"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": named}))
    assert found.options.additional_special_tokens == ("cat", "<e>")


# The model beside it


@pytest.mark.parametrize("limit", [{}, {"model_max_length": None}, {"model_max_length": int(1e30)}, {"max_len": 1e30}])
def test_the_limit_is_the_models_when_the_files_have_none(folder, limit):
    files = {"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": limit}
    assert read_tokenizer(folder(files)).options.model_max_length is None
    config = {"max_position_embeddings": 24, "vocab_size": 8}
    assert read_tokenizer(folder({**files, "config.json": config})).options.model_max_length == 24
    files["tokenizer_config.json"] = {"max_len": 7}
    assert read_tokenizer(folder({**files, "config.json": config})).options.model_max_length == 7


def test_more_tokens_than_the_model_has_rows_are_refused(folder):
    files = {"vocab.txt": "\n".join(WORDS), "config.json": {"vocab_size": 7}}
    assert "the token '##s' has the id 7, but the model knows only 7 (vocab_size in config.json)" in refused(
        folder(files)
    )
    files["config.json"] = {"vocab_size": 8}
    read_tokenizer(folder(files))
    files["added_tokens.json"] = {"<a>": 8}
    assert "the token '<a>' has the id 8" in refused(folder(files))


def test_a_preset_of_keras_hub(folder):
    config = {"split": True, "suffix_indicator": "##", "oov_token": "[UNK]", "lowercase": False, "strip_accents": True}
    files = {
        "tokenizer.json": {"registered_name": "x", "class_name": "DistilBertTokenizer", "config": config},
        "assets/tokenizer/vocabulary.txt": "\n".join(WORDS),
        "config.json": {"registered_name": "x", "config": {"max_sequence_length": 12, "vocabulary_size": 8}},
    }
    place = folder(files)
    vocabulary, added, options = read_tokenizer(place)
    assert (vocabulary, added) == CONTENT[:2]
    assert options == TokenizerOptions(do_lower_case=False, strip_accents=True, model_max_length=12)
    with pytest.raises(TokenizerError, match=r"is a KerasHub preset, whose .* is a file of another kind"):
        write_tokenizer(CONTENT, place)
    files["config.json"]["config"]["vocabulary_size"] = 7
    assert "knows only 7" in refused(folder(files))
    del files["assets/tokenizer/vocabulary.txt"]
    assert "there is no such file" in refused(folder(files))


# vocab.txt


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", {}),
        (b"\n", {"": 0}),
        (b"a\nb\n", {"a": 0, "b": 1}),
        (b"a\r\nb", {"a": 0, "b": 1}),
        (b"a\rb\n", {"a": 0, "b": 1}),
        (b"a\n\nb\n\n", {"a": 0, "": 3, "b": 2}),
        (b"a\nb\na\n", {"a": 2, "b": 1}),
        (b" a \n\x00\n\xc2\x85b\xe2\x80\xa8c\n", {" a ": 0, "\0": 1, "\x85b\u2028c": 2}),
    ],
)
def test_the_lines_of_a_vocabulary(tmp_path, data, expected):
    (tmp_path / "vocab.txt").write_bytes(data)
    assert read_vocabulary(tmp_path / "vocab.txt") == expected


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("grüße\n".encode("latin-1"), r"is not UTF-8 text \(byte 2\)"),
        ("\ufeff[PAD]\n".encode(), "begins with a byte order mark"),
        ("[PAD]\n".encode("utf-16"), "is not UTF-8 text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html>\n", "an HTML page"),
        (b"x" * 50_000_000, "ResourceLimit"),
        (b"\n" * 20_000_000, "ResourceLimit"),
        (b"\n" * (MAX_TOKENS + 1), "more than the 1048576 allowed in a vocabulary"),
    ],
    ids=["latin-1", "mark", "utf-16", "git-lfs", "html", "long", "many", "too many"],
)
def test_what_no_vocabulary_is_read_from(tmp_path, data, text):
    (tmp_path / "vocab.txt").write_bytes(data)
    del data
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(TokenizerError, match=text):
        read_vocabulary(tmp_path / "vocab.txt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 2
    assert peak < 64 << 20


def test_the_largest_vocabulary_is_quick(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"x" * (MAX_VOCABULARY_BYTES - MAX_TOKENS) + b"\n" * MAX_TOKENS)
    start = time.perf_counter()
    assert len(read_vocabulary(tmp_path / "vocab.txt")) == 2
    assert time.perf_counter() - start < 2


def test_a_lone_vocabulary_that_is_not_there(tmp_path):
    with pytest.raises(TokenizerError, match="there is no such file"):
        read_vocabulary(tmp_path / "vocab.txt")
    assert "there is no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "vocab.txt").touch()
    assert "there is no such folder" in refused(tmp_path / "vocab.txt")


# tokenizer.json and the others


def set_path(*keys):
    """A change of the value at the path of `keys`, the last of which is the value."""

    def change(content):
        for key in keys[:-2]:
            content = content[key]
        content[keys[-2]] = keys[-1]

    return change


TEMPLATE = ("post_processor", "single")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (set_path("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}}), "pre_tokenizer must be BertPre"),
        (set_path("normalizer", {"type": "Replace", "content": "x" * 10**6}), "got 'Replace'"),
        (set_path("normalizer", "clean_text", False), "clean_text must be True, got False"),
        (set_path("model", "type", "BPE"), "model must be WordPiece"),
        (set_path("model", "continuing_subword_prefix", "@@"), "continuing_subword_prefix must be '##', got '@@'"),
        (set_path("model", "max_input_chars_per_word", 10**12), "max_input_chars_per_word must be 100, got 10000000"),
        (set_path("model", "vocab", "##z", 60), "gives an id twice"),
        (set_path("model", "vocab", "##z", 10**9), "the vocabulary of 69 tokens has the id 1000000000"),
        (set_path("model", "vocab", "##z", True), "the id of '##z' must be a number from 0, got True"),
        (lambda v: v["model"]["vocab"].pop("[UNK]"), r"gives '\[UNK\]' the id 1|must be|lacks"),
        (set_path(*TEMPLATE, []), "must put one token before a text and one after it"),
        (set_path(*TEMPLATE, 0, "SpecialToken", "id", "the"), "post_processor gives 'the' the id None, not its own"),
        (set_path("post_processor", "special_tokens", "[CLS]", "ids", [9]), "gives '\\[CLS\\]' the id 9, not its own"),
        (set_path("decoder", {"type": "Replace", "pattern": {"Regex": "x"}}), "decoder must be WordPiece or None"),
        (set_path("added_tokens", 9, "id", 90), "'<e2>' cannot have the id 90: it must be 73"),
        (set_path("added_tokens", 5, "id", 8), "added token 'newword' cannot have the id 8: 'dog' has it"),
        (set_path("added_tokens", 5, "content", "dog"), "the added token 'dog' cannot have the id 69"),
        (lambda v: v["added_tokens"].pop(5), "added token '<one>' cannot have the id 70: it must be 69"),
        (lambda v: v["added_tokens"].append({**v["added_tokens"][5], "id": 74}), "it has 69, too"),
    ],
)  # fmt: skip
def test_another_kind_of_tokenizer_is_refused(folder, change, text):
    files = changed("added-v5", "tokenizer.json", change)
    with pytest.raises(TokenizerError, match=text):
        read_tokenizer(folder(files))
    refused(folder(files))


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"vocab.txt": "a"}, "the vocabulary lacks [UNK], [SEP], [PAD], [CLS], [MASK]"),
        ({"vocab.txt": ""}, "the vocabulary lacks"),
        ({"tokenizer_config.json": {}}, "holds neither tokenizer.json nor vocab.txt"),
        ({"tokenizer.json": '{"model": {}, "model": {}}'}, "names 'model' twice"),
        ({"tokenizer.json": '{"a": NaN}'}, "NaN"),
        ({"tokenizer.json": "[" * 10**5}, "nested too deeply"),
        ({"tokenizer.json": b"\xff\xfe{"}, "is not UTF-8 text"),
        ({"tokenizer.json": '"x"'}, "holds a JSON str, not an object"),
        ({"tokenizer.json": {"registered_name": "x"}}, "is not a DistilBERT tokenizer's"),
        ({"vocab.txt": "\n".join([*WORDS, "the"]), "added_tokens.json": {"<a>": 8}}, "cannot have the id 8"),
        ({"vocab.txt": "\n".join([*WORDS, "the"]), "added_tokens.json": {"<a>": 9}}, "cannot have the id 9"),
        ({"vocab.txt": "\n".join(["", "", *WORDS]), "added_tokens.json": {"<a>": 9}}, "cannot have the id 9"),
        ({"vocab.txt": "\n".join(WORDS), "config.json": "{"}, "config.json: is not valid JSON"),
    ],
)
def test_broken_files_are_one_line(folder, files, text):
    assert text in refused(folder(files))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("tokenizer.json", '{"a":[' + "[]," * 5_000_000 + "[]]}", "holds more lists and objects than a tokenizer has"),
        ("tokenizer.json", " " * (17 << 20), "ResourceLimit"),
        ("tokenizer_config.json", {"extra_special_tokens": ["a"] * 100_000}, "has 100000 tokens, more than the 65536"),
        ("added_tokens.json", {str(i): i for i in range(100_000)}, "has 100000 tokens, more than the 65536"),
    ],
    ids=["lists", "large", "special", "added"],
)
def test_large_files_are_refused_at_once(folder, name, content, text):
    place = folder({"vocab.txt": "\n".join(WORDS), name: content})
    start = time.perf_counter()
    assert text in refused(place)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("key", ["x", "-1", "1.5", "٣", "9" * 5000, "", " 1", "1e3", "99"])
def test_ids_of_a_decoder_are_numbers(folder, key):
    config = {"added_tokens_decoder": {key: {"content": "<a>"}}}
    refused(folder({"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": config}))


def is_read(place):
    """Whether there is a tokenizer in the folder; else it is refused properly."""
    try:
        return isinstance(read_tokenizer(place), TokenizerContent)
    except TokenizerError:
        refused(place)
        return False


def places(value, path=()):
    """The path of each value in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def vary(content):
    """Copies of a JSON object with one value of another type, or gone."""
    for path in places(content):
        if not path:
            continue
        for new in (None, -1, "x", [], {}, 1e308, True, 1 << 70, "gone"):
            varied = copy.deepcopy(content)
            parent = varied
            for key in path[:-1]:
                parent = parent[key]
            if new == "gone":
                del parent[path[-1]]
            else:
                parent[path[-1]] = new
            yield varied


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("tokenizers/custom-v4-slow", "special_tokens_map.json"),
        ("tokenizers/added-v4-slow", "added_tokens.json"),
        ("tokenizers/added-v4-slow", "tokenizer_config.json"),
        ("tokenizers/added-v5", "tokenizer_config.json"),
        ("tokenizers/added-v5", "tokenizer.json"),
        ("keras_hub/masked_lm", "tokenizer.json"),
    ],
)
def test_whatever_a_value_is_the_result_is_a_tokenizer_or_one_error(tmp_path, source, name):
    place = tmp_path / "tokenizer"
    shutil.copytree(DATA / source, place)
    content = json.loads((place / name).read_text())
    if source.endswith("-v5") and name == "tokenizer.json":  # less of what is alike
        content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:6])
        content["added_tokens"] = [content["added_tokens"][4], {**content["added_tokens"][9], "id": 6}]
        content["padding"] = {"direction": "Left"}
    if name in ("special_tokens_map.json", "added_tokens.json"):
        config = json.loads((place / "tokenizer_config.json").read_text())
        del config["added_tokens_decoder"]
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    if "added_tokens_decoder" in content:
        content["added_tokens_decoder"] = {i: content["added_tokens_decoder"][i] for i in ("4", "69", "70")}
        (place / "added_tokens.json").unlink()
        content["additional_special_tokens"] = ["<one>"]
    (place / name).write_text(json.dumps(content))
    read_tokenizer(place)  # the unchanged one is good
    outcomes = {"read": 0, "refused": 0}
    for varied in vary(content):
        (place / name).write_text(json.dumps(varied))
        outcomes["read" if is_read(place) else "refused"] += 1
    assert all(outcomes.values()), outcomes


def test_a_file_that_was_changed_after_the_save_is_refused(tmp_path):
    write_tokenizer(CONTENT, tmp_path / "out")
    path = tmp_path / "out" / "special_tokens_map.json"
    path.write_text(path.read_text().replace("[MASK]", "[mask]"))
    assert "IntegrityMismatch" in refused(tmp_path / "out")


def test_a_link_out_of_the_folder_is_not_followed(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    place = folder()
    (place / "tokenizer_config.json").symlink_to(tmp_path / "secret.json")
    assert "UnsafeLink" in refused(place)


# Writing


def test_a_save_keeps_what_the_folder_holds_but_for_old_added_tokens(tmp_path):
    write_tokenizer(read_tokenizer(GOLDENS["added-v5"]), tmp_path)
    assert (tmp_path / "added_tokens.json").exists()
    safely.write_json(tmp_path / "config.json", {"vocab_size": 8, "max_position_embeddings": 24})
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    manifest.write(tmp_path, manifest.files(tmp_path))
    write_tokenizer(CONTENT, tmp_path)
    assert read_tokenizer(tmp_path) == CONTENT._replace(options=TokenizerOptions(model_max_length=24))
    assert not (tmp_path / "added_tokens.json").exists()
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"
    listed = manifest.read(tmp_path)
    assert set(listed) == {*TOKENIZER_FILES, "config.json", "model.safetensors"} - {"added_tokens.json"}
    assert manifest.differences(tmp_path, listed) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"vocabulary": {**CONTENT.vocabulary, "a\nb": 8}}, r"the token 'a\\nb' holds a line end"),
        ({"vocabulary": {**CONTENT.vocabulary, "a\rb": 8}}, r"the token 'a\\rb' holds a line end"),
        ({"vocabulary": {**CONTENT.vocabulary, "a": 7}}, "gives an id twice"),
        ({"vocabulary": {**CONTENT.vocabulary, "a": 999}}, "of 9 tokens has the id 999"),
        ({"added_tokens": {**SPECIAL, 9: AddedToken("<a>")}}, "'<a>' cannot have the id 9: it must be 8"),
        (
            {"vocabulary": {**CONTENT.vocabulary, "a": 9}, "added_tokens": {**SPECIAL, 9: AddedToken("<a>")}},
            "leaves out ids, so no token can be added",
        ),
    ],
)  # fmt: skip
def test_what_no_file_can_hold_is_refused_and_nothing_written(tmp_path, change, text):
    with pytest.raises(TokenizerError, match=text):
        write_tokenizer(CONTENT._replace(**change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ids_that_are_left_out_are_lines_that_repeat(tmp_path):
    vocabulary = {token: i + 2 * (i > 4) + 1 for token, i in CONTENT.vocabulary.items()}
    added = {i + 1: token for i, token in SPECIAL.items()}
    content = CONTENT._replace(vocabulary=vocabulary, added_tokens=added)
    write_tokenizer(content, tmp_path)
    assert read_tokenizer(tmp_path) == content
    assert read_vocabulary(tmp_path / "vocab.txt") == vocabulary
    lines = (tmp_path / "vocab.txt").read_text().split("\n")
    assert lines[:2] == ["[PAD]"] * 2
    assert lines[6:9] == ["the"] * 3


def test_a_folder_that_cannot_be_written_keeps_its_tokenizer(tmp_path):
    write_tokenizer(CONTENT, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(TokenizerError):
        write_tokenizer(CONTENT._replace(vocabulary={"a": 0}), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(DistilBertError, match="is not a folder"):
        write_tokenizer(CONTENT, tmp_path / "out" / "vocab.txt")


def test_of_a_hub_model_the_vocabulary_comes_first_and_all_that_is_there_comes():
    class Source:
        def __init__(self, *names):
            self.has = names.__contains__

    assert tokenizer_files(Source("vocab.txt", "config.json", "model.safetensors", "added_tokens.json")) == [
        "vocab.txt", "vocab.txt", "added_tokens.json", "config.json",
    ]  # fmt: skip
    with pytest.raises(LookupError, match=r"tokenizer.json or vocab.txt"):
        tokenizer_files(Source("config.json"))
