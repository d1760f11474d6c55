"""What several devices may be for. Imports nothing."""

LATENCY, THROUGHPUT, MEMORY = "latency", "throughput", "memory"
OBJECTIVES = {
    LATENCY: "one request in the least time",
    THROUGHPUT: "most requests in a time: each on as few devices as pay, and several beside each other",
    MEMORY: "the least memory of a device",
}
