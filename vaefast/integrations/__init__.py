"""vaefast inside the libraries that people train VAEs with: one module for each.

None is imported here, nor is its library: `import vaefast.integrations.scvi` asks for scvi-tools
only when `patch()` is called. docs/integrations.md says what each replaces and where it pays.
"""

from ._patching import Patch, VersionError

__all__ = ["Patch", "VersionError"]
