"""Opening an index for the service, and again whenever it has a new generation."""

import os

from cmap_jax.retrieval.index_files.form import MANIFEST, read_manifest
from cmap_jax.retrieval.retriever import Retriever


class Opener:
    """Opens an index; its model is loaded again only where it is another one.

    Attributes:
        manifest: path of the file that a new generation replaces.
        first: the index as it was when this was made; None after the first call, which returns
            it unless there is a new generation, lest it stay in memory.
    """

    def __init__(self, folder: str | os.PathLike, model: str | os.PathLike | None = None):
        """Open the index.

        Args:
            folder: of the index.
            model: workdir of its model; None: the one that the index names.

        Raises:
            FileNotFoundError, ValueError: as `Retriever.load`.
        """
        self._folder = os.fspath(folder)
        self._model = model
        self.manifest = os.path.join(self._folder, MANIFEST)
        self.first: Retriever | None = Retriever.load(folder, model=model)

    def __call__(self, previous: Retriever | None) -> Retriever:
        """Return the index as it is now; raises as `Retriever.load`.

        Args:
            previous: what was opened last; None for the first call.
        """
        manifest, model = read_manifest(self._folder), self._model
        if self.first is not None:
            previous, self.first = self.first, None
            # Loading the model takes a while, in which the index may have been updated.
            if manifest == previous.index.manifest:
                return previous
        if previous is not None and manifest.fingerprint == previous.index.manifest.fingerprint:
            model = previous.trained
        return Retriever.load(self._folder, model=model)
