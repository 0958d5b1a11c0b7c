"""neurona doctor: what stands between this machine and a server, a GPU included.

    findings        what a check returns, and how checks are run so that none stops the others
    settings        the options of the server that decide what is checked
    package_checks  Python, the packages, their versions
    runtime_checks  ONNX Runtime, its providers, driver, CUDA, cuDNN, the GPUs
    machine_checks  CPUs, memory, files, ports, the cache
    __main__        the command: `python -m neurona_server.doctor`, which `neurona doctor` runs

A check imports what it needs when it runs: the packages of the server may be missing.
"""
