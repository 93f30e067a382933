"""The embedded data set: garments drawn by this library, on disk in FashionIQ's layout.

```python
from input_pipeline import garments

folder = garments.prepare("data/garments", seed=0)  # seconds; returns at once the next time
```
"""

from input_pipeline.garments.folder import prepare

__all__ = ["prepare"]
