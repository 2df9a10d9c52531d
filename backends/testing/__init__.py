"""The conformance suite of storage backends, for our adapters and for those of others.

A test module of an adapter says:

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        async def backend(self):
            backend = await MyBackend.connect(MyOptions(...))   # an empty store
            yield backend
            await backend.aclose()

and runs under pytest with pytest-asyncio in `auto` mode. What else can be overridden is in backends/testing/truth.py. Needs
pytest, which the runtime install does not bring. docs/extending.md walks through one.
"""

from backends.testing.atomicity import Atomicity
from backends.testing.copies import Copies
from backends.testing.naming import Naming
from backends.testing.reading import Reading
from backends.testing.scale import Scale
from backends.testing.truth import Truth, needs
from backends.testing.upkeep import Upkeep

__all__ = ["BackendConformance", "Truth", "needs"]


class BackendConformance(Reading, Atomicity, Naming, Copies, Upkeep, Scale):
    """Everything backends/base.py promises."""
