"""The command serve: its flags, and mistakes that end it before anything long begins."""

import argparse
import signal

import pytest

from cmap_jax.cli import command, errors, serve


def settings(*flags: str):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return serve._settings(parser.parse_args(["INDEX", *flags]))


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch):
    monkeypatch.delenv("CMAP_API_KEY", raising=False)


def test_flags():
    default = settings()
    assert default.api_key is None
    assert default.hosts == ("127.0.0.1", "localhost", "[::1]")
    own = settings("--max-upload-mb", "2", "--max-megapixels", "0.5", "--allow-host", "Shop.de")
    assert (own.upload_bytes, own.pixels) == (2 * 2**20, 500_000)
    assert own.hosts == (*default.hosts, "shop.de")
    assert settings("--host", "0.0.0.0").hosts == ()
    assert settings("--host", "0.0.0.0", "--allow-host", "a").hosts == ("a",)
    assert settings("--note", "One.", "--note", "Two.").notes == ("One.", "Two.")


def test_a_key_of_a_file_or_of_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text("abc-1\n")
    assert settings("--api-key-file", str(file)).api_key == "abc-1"
    monkeypatch.setenv("CMAP_API_KEY", "abc-2")
    assert settings().api_key == "abc-2"
    with pytest.raises(ValueError, match="leave one out"):
        settings("--api-key-file", str(file))
    for broken in ("", "a b", "schlüssel"):
        monkeypatch.setenv("CMAP_API_KEY", broken)
        with pytest.raises(ValueError, match="CMAP_API_KEY: a key is letters"):
            settings()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "--port must be 0 to 65535"),
        (["--batch", "0"], "--batch must be 1 or more, not 0"),
        (["--max-upload-mb", "inf"], "--max-upload-mb must be 1 or more, not inf"),
        (["--max-megapixels", "nan"], "--max-megapixels must be"),
        (["--timeout", "nan"], "--timeout must be 1 or more, not nan"),
        (["--reload-seconds", "-1"], "--reload-seconds must be 0 or more, not -1"),
        (["--api-key-file", "no-such-file"], "no-such-file"),
        (["--allow-host", "https://shop.de"], "--allow-host takes a name alone"),
        (["--allow-host", "shop.de:8000"], "such as shop.example.com, not 'shop.de:8000'"),
        (["--trust-proxy", "nginx"], "--trust-proxy takes an IP address or a network"),
        (["--allow-host", "[::1]", "--trust-proxy", "10.0.0.0/8", "--port", "0"], "no index"),
        (["--port", "0"], "holds no index"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, flags, message):
    assert command.main(["serve", str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_sigterm_ends_a_process_that_still_loads():
    """The first process of a container ignores signals that it has no handler for."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, serve._ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_extra_is_named(package):
    missing = ModuleNotFoundError(f"No module named '{package}'", name=package)
    assert "pip install 'cmap_jax[serve]'" in errors.explain(missing)
