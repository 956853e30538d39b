//! The clock of tests that measure.

/// Seconds that this thread has had of a processor, for machines that are not at rest. 0 if the system does not say it.
pub(super) fn processor_seconds() -> f64 {
    let said = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    said.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok()).map_or(0.0, |ns: f64| ns * 1e-9)
}
