"""The `fenchel` command: starts the command line, or says in one line which extra it lacks."""

import sys

# The core needs torch and numpy alone; each of these comes with an extra.
_EXTRA_OF = {
    "typer": "cli",
    "rich": "cli",
    "matplotlib": "cli",
    "transformers": "hf",
    "accelerate": "hf",
    "datasets": "hf",
    "tokenizers": "hf",
    "safetensors": "hf",
    "sklearn": "sklearn",
    "triton": "triton",
}


def main() -> None:
    """Run the command line."""
    try:
        from fenchel.cli import app

        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_OF:
            raise
        sys.exit(f"fenchel: this needs the package {package}: pip install 'fenchel[{_EXTRA_OF[package]}]'")


if __name__ == "__main__":
    main()
