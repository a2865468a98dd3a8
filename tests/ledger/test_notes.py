"""Signed notes and checkpoints against the vectors of C2SP and of Go's note package, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuebook.events.errors import ConfigurationError
from cuebook.ledger.errors import ExportError, TamperedError
from cuebook.ledger.notes import Checkpoint, PrivateKey, PublicKey, read_notes

# From the C2SP specification of signed notes.
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n\N{EM DASH} example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# From the documentation of golang.org/x/mod/sumdb/note.
GO_KEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_NOTE = (
    f"{GO_TEXT}\n\N{EM DASH} PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


@pytest.fixture
def key() -> PrivateKey:
    return PrivateKey("example.com/cue", b"\x07" * 32)


def test_notes_of_others_are_opened() -> None:
    assert PublicKey.parse(VKEY).open(NOTE) == "This is an example message.\n"
    assert PublicKey.parse(GO_VKEY).open(GO_NOTE) == GO_TEXT
    assert str(PublicKey.parse(VKEY)) == VKEY


def test_a_key_of_others_signs_the_same_bytes(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(GO_KEY)
    file.chmod(0o600)
    assert PrivateKey.load(file).sign(GO_TEXT) == GO_NOTE


def test_a_checkpoint_is_read_as_it_was_signed(key: PrivateKey) -> None:
    signed = key.checkpoint(12, b"r" * 32)
    assert signed.note.startswith("example.com/cue\n12\ncnJy")
    assert key.public.checkpoint(signed.note) == signed
    witnessed = signed.note + NOTE.rpartition("\n\n")[2]  # whose key nobody here knows
    assert key.public.checkpoint(witnessed).root == b"r" * 32
    assert Checkpoint.parse(signed.text + "an extension\n").size == 12


def test_every_changed_byte_of_a_note_is_noticed(key: PrivateKey) -> None:
    note = key.checkpoint(1234, b"\x01" * 32).note.encode()
    for place in range(len(note)):
        for bit in range(8):
            changed = bytearray(note)
            changed[place] ^= 1 << bit
            with pytest.raises((TamperedError, ExportError)):
                key.public.checkpoint(changed.decode("utf-8", "replace"))


def test_a_note_of_another_key_or_log_is_refused(key: PrivateKey) -> None:
    with pytest.raises(TamperedError, match="has not signed"):
        PrivateKey("example.com/cue", b"\x08" * 32).public.checkpoint(key.checkpoint(1, b"r" * 32).note)
    other = Checkpoint(origin="example.com/other", size=1, root=b"r" * 32)
    with pytest.raises(TamperedError, match="the key of"):
        key.public.checkpoint(key.sign(other.text))


@pytest.mark.parametrize(
    "text", ["", "origin\n1\n", "origin\n01\ncnJy\n", "o\n1\ncnJy\n", "o\n-1\n" + "A" * 43 + "=\n", "\n1\nAAAA\n"]
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="no checkpoint"):
        Checkpoint.parse(text)


@pytest.mark.parametrize("text", ["", "x", "a+b+c", "example.com/foo+530d903b+" + VKEY.rpartition("+")[2], "/tmp"])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="public key"):
        PublicKey.parse(text)


def test_a_key_file_is_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    made = PrivateKey.generate("example.com/cue")
    file = tmp_path / "keys" / "seal.key"
    public = made.save(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert PublicKey.parse(str(public)) == made.public == PrivateKey.load(file).public
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        PrivateKey.generate("example.com/cue").save(file)
    assert file.read_bytes() == before
    file.chmod(0o640)
    with pytest.raises(ConfigurationError, match="can be read by others") as refused:
        PrivateKey.load(file)
    assert refused.value.remedy == f"chmod 600 {file}"
    public.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is no private key"):
        PrivateKey.load(public)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        PrivateKey.load(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="name of a log"):
        PrivateKey.generate("a b")


def test_a_file_of_notes_is_taken_apart_and_a_torn_end_is_left_over(key: PrivateKey) -> None:
    notes = [key.checkpoint(size, b"r" * 32).note for size in (1, 2, 3)]
    text = "".join(f"{note}\n" for note in notes)
    assert read_notes(text) == (notes, "")
    assert read_notes(notes[0]) == (notes[:1], "")
    for cut in range(1, len(notes[2])):
        found, rest = read_notes(text[: -len(notes[2]) - 1] + notes[2][:cut])
        assert (found, rest) == (notes[:2], notes[2][:cut])
    assert read_notes("") == ([], "")
