"""Jupyter's own REST and WebSocket protocol: kernels are sessions, kernelspecs are templates.

The source is Jupyter Server's API (its ``api.yaml``) as its gateway client, JupyterLab and others use it.
"""
