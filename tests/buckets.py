"""A stand-in for buckets: gs://NAME/... is a folder of this disk, for all that uses epath."""

import dataclasses
import os
import pathlib

import pytest
from etils.epath import backend, gpath

_SCHEME = "gs://"


class _Bucket(backend._OsPathBackend):
    """Files of a folder under a bucket's URLs; it has no folders but those that files are in."""

    def __init__(self, root: pathlib.Path):
        self.root = str(root)

    def _local(self, path) -> str:
        return os.path.join(self.root, os.fspath(path).removeprefix(_SCHEME))


def _translated(name: str):
    method = getattr(backend._OsPathBackend, name)

    def call(self, *paths, **options):
        local = [self._local(p) if str(p).startswith(_SCHEME) else p for p in paths]
        return method(self, *local, **options)

    return call


for _name in ("open", "exists", "isdir", "listdir", "makedirs", "mkdir", "rmtree", "remove"):
    setattr(_Bucket, _name, _translated(_name))
for _name in ("rename", "replace", "copy", "stat"):
    setattr(_Bucket, _name, _translated(_name))


def _walk(self, top, *, top_down=True, on_error=None):
    for folder, folders, names in os.walk(self._local(top), topdown=top_down, onerror=on_error):
        yield _SCHEME + os.path.relpath(folder, self.root), folders, names


_Bucket.walk = _walk


class _FsspecBucket(_Bucket):
    """A bucket as fsspec reads it: listings have no scheme, and files may have no time."""

    def walk(self, top, **options):
        for folder, folders, names in super().walk(top, **options):
            yield folder.removeprefix(_SCHEME), folders, names

    def stat(self, path):
        return dataclasses.replace(super().stat(path), mtime=0)


def use_folder_as_bucket(
    monkeypatch: pytest.MonkeyPatch, root: pathlib.Path, *, fsspec: bool = False
) -> None:
    """Let gs://NAME be the folder NAME below ``root`` during a test."""
    bucket = (_FsspecBucket if fsspec else _Bucket)(root)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", bucket)
