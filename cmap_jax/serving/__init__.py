"""An HTTP service over an index: `cmap serve INDEX`. Its packages come with the extra `serve`."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.serving import (
        admission,
        answers,
        app,
        batching,
        browsing,
        edge,
        explaining,
        forms,
        generations,
        keeping,
        logs,
        metrics,
        opening,
        pictures,
        reading,
        refusals,
        schemas,
        server,
        settings,
        static_files,
        thumbnails,
    )

__all__ = [
    "admission",
    "answers",
    "app",
    "batching",
    "browsing",
    "edge",
    "explaining",
    "forms",
    "generations",
    "keeping",
    "logs",
    "metrics",
    "opening",
    "pictures",
    "reading",
    "refusals",
    "schemas",
    "server",
    "settings",
    "static_files",
    "thumbnails",
]
