"""Time and memory of federated averaging: 100 clients with a million float32 each.

    python benchmarks/aggregation.py [--clients 100] [--values 1000000]

`from memory` feeds vectors to the strategy; `from files` is the whole of a round, with reading and checking
safetensors files. The reference is NumPy's weighted mean over all updates in memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from edgewise_server.federation.aggregation import ClientUpdate, aggregate
from edgewise_server.federation.strategies.fedavg import FedAvg
from safetensors.numpy import load, save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--values", type=int, default=1_000_000)
    arguments = parser.parse_args()
    clients, values = arguments.clients, arguments.values
    random = np.random.default_rng(0)
    start = random.normal(0, 1, values).astype(np.float32)
    samples = [int(s) for s in random.integers(50, 500, clients)]

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{n}.safetensors" for n in range(clients)]
        for file in files:
            save_file({"p.w": start + random.normal(0, 0.01, values).astype(np.float32)}, file)
        save_file({"p.w": start}, Path(folder) / "start.safetensors")

        before = _peak_mib()
        began = time.perf_counter()
        result = aggregate(
            "fedavg",
            Path(folder) / "start.safetensors",
            [ClientUpdate(str(n), file, samples[n]) for n, file in enumerate(files)],
            min_clients=clients,
        )
        from_files = time.perf_counter() - began
        grown = _peak_mib() - before

        updates = [load(file.read_bytes())["p.w"] for file in files]
        copies = [update.copy() for update in updates]
        strategy = FedAvg(start, values)
        began = time.perf_counter()
        for update, weight in zip(copies, samples, strict=True):
            strategy.add(update, weight)
        strategy.result()
        from_memory = time.perf_counter() - began

        began = time.perf_counter()
        reference = np.average(np.stack(updates), axis=0, weights=samples)
        by_numpy = time.perf_counter() - began

    error = float(np.abs(load(result.weights)["p.w"] - reference).max())
    print(f"{clients} clients x {values} float32, one thread")
    print(f"  from memory           {from_memory * 1e3:8.1f} ms")
    print(f"  from files            {from_files * 1e3:8.1f} ms, peak {grown:.0f} MiB above the base")
    print(
        f"  numpy.average, stack  {by_numpy * 1e3:8.1f} ms, {clients * values * 4 / 2**20:.0f} MiB of updates in memory"
    )
    print(f"  largest difference    {error:.2e}")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
