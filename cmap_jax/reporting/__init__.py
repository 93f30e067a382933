"""Reports on a workdir's model, to be shown to others: one HTML file, and Markdown."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from cmap_jax.reporting import (
        document,
        html,
        markdown,
        published,
        sections,
        writing,
    )

__all__ = ["document", "html", "markdown", "published", "sections", "writing"]
