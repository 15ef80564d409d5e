"""The IPython kernel of a session: a stock ipykernel, and what sessions need of it besides."""
