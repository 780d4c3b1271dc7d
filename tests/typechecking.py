"""Check the shapes and types in the signatures of `lightning_modules.ppo` at every call.

It takes effect when it is imported before the package.
"""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float

install_import_hook("lightning_modules.ppo", f"{__name__}.check")
