//! What Prometheus is told, in its text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

/// Every metric: its name, its type and what it says. Labels have few values, and a client chooses none of them.
const METRICS: &[(&str, &str, &str)] = &[
    ("pinhole_connections", "gauge", "Connections that are open."),
    ("pinhole_connections_refused_total", "counter", "Connections beyond --max-connections."),
    ("pinhole_http_requests_total", "counter", "Answers, by their codes."),
    ("pinhole_jobs_accepted_total", "counter", "Jobs that were accepted."),
    ("pinhole_jobs_ended_total", "counter", "Jobs that ended, by how."),
    ("pinhole_jobs_refused_total", "counter", "Jobs that were not accepted, by why."),
    ("pinhole_jobs_resumed_total", "counter", "Jobs that an earlier process left behind."),
    ("pinhole_queue_length", "gauge", "Jobs that wait."),
    ("pinhole_shared_queue_length", "gauge", "Jobs of --queue that wait for a machine."),
    ("pinhole_shared_queue_taken", "gauge", "Jobs of --queue that some machine has."),
    ("pinhole_deliveries_total", "counter", "Jobs of --queue that this machine took, by what it told the queue."),
    (
        "pinhole_cancelled_total",
        "counter",
        "Jobs of --queue that this machine took out of it, since they were cancelled.",
    ),
    ("pinhole_results_refused_total", "counter", "Ends that --results did not take at once."),
    ("pinhole_jobs_running", "gauge", "Jobs that are drawn."),
    ("pinhole_runs_total", "counter", "Runs of the device: jobs that are drawn together have one."),
    ("pinhole_pictures_total", "counter", "Pictures that were drawn."),
    ("pinhole_wait_seconds_sum", "counter", "Seconds that jobs waited in the queue."),
    ("pinhole_wait_seconds_count", "counter", "Jobs that waited."),
    ("pinhole_phase_seconds_sum", "counter", "Seconds by phase."),
    ("pinhole_phase_seconds_count", "counter", "How often each phase ran."),
    ("pinhole_moved_bytes_total", "counter", "Bytes of weights that were brought to the device."),
    ("pinhole_planned_peak_bytes", "gauge", "The planned peak of the last run on the device (of several, the first)."),
    (
        "pinhole_measured_peak_bytes",
        "gauge",
        "The measured peak of the last run on the device (of several, the first).",
    ),
    (
        "pinhole_highest_peak_bytes",
        "gauge",
        "The highest measured peak of all runs on the device (of several, the first).",
    ),
    ("pinhole_budget_bytes", "gauge", "The ceiling of the last run, if there is one."),
    ("pinhole_device_planned_peak_bytes", "gauge", "The planned peak of the last run, by device."),
    ("pinhole_device_measured_peak_bytes", "gauge", "The measured peak of the last run, by device."),
    ("pinhole_device_budget_bytes", "gauge", "The ceiling of the last run, by device, where there is one."),
    ("pinhole_device_moved_bytes_total", "counter", "Bytes of weights that were brought, by device."),
    (
        "pinhole_device_exchanged_bytes_total",
        "counter",
        "Bytes of other numbers that were given to a device and taken from it, by device.",
    ),
    ("pinhole_held_bytes", "gauge", "Bytes that are held on all devices between runs."),
    ("pinhole_models_loaded", "gauge", "Models that are loaded."),
    ("pinhole_models_loaded_total", "counter", "How often a model was loaded."),
    ("pinhole_models_unloaded_total", "counter", "How often a model was unloaded, by why."),
    ("pinhole_resident_bytes", "gauge", "Memory of the process, by the kernel's account."),
];

/// The numbers so far.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<(&'static str, Option<Label>), f64>>);

/// The name and the value of a label.
type Label = (&'static str, String);

impl Metrics {
    fn with<R>(&self, change: impl FnOnce(&mut BTreeMap<(&'static str, Option<Label>), f64>) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds to a counter without labels, or to a gauge.
    pub fn add(&self, name: &'static str, number: f64) {
        self.with(|all| *all.entry((name, None)).or_default() += number);
    }

    /// Adds to a counter with a label.
    pub fn add_of(&self, name: &'static str, label: &'static str, value: &str, number: f64) {
        self.with(|all| *all.entry((name, Some((label, value.to_owned())))).or_default() += number);
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, number: f64) {
        self.with(|all| all.insert((name, None), number));
    }

    /// Sets a gauge with a label.
    pub fn set_of(&self, name: &'static str, label: &'static str, value: &str, number: f64) {
        self.with(|all| all.insert((name, Some((label, value.to_owned()))), number));
    }

    /// Sets a gauge if that raises it.
    pub fn raise(&self, name: &'static str, number: f64) {
        self.with(|all| {
            let highest = all.entry((name, None)).or_default();
            *highest = highest.max(number);
        });
    }

    /// What a metric without labels is.
    pub fn get(&self, name: &'static str) -> f64 {
        self.with(|all| all.get(&(name, None)).copied().unwrap_or_default())
    }

    /// All of them, as Prometheus reads them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.with(|all| {
            for (name, kind, help) in METRICS {
                let mut values = all.range((*name, None)..).take_while(|((of, _), _)| of == name).peekable();
                if values.peek().is_none() {
                    continue;
                }
                // Writing to a String does not fail.
                let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
                for ((_, label), value) in values {
                    let _ = match label {
                        Some((label, of)) => writeln!(text, "{name}{{{label}=\"{of}\"}} {value}"),
                        None => writeln!(text, "{name} {value}"),
                    };
                }
            }
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.add("pinhole_jobs_accepted_total", 2.0);
        metrics.add_of("pinhole_jobs_ended_total", "outcome", "done", 1.0);
        metrics.add_of("pinhole_jobs_ended_total", "outcome", "failed", 1.0);
        metrics.raise("pinhole_highest_peak_bytes", 5.0);
        metrics.raise("pinhole_highest_peak_bytes", 3.0);
        let expected = "# HELP pinhole_jobs_accepted_total Jobs that were accepted.\n\
            # TYPE pinhole_jobs_accepted_total counter\n\
            pinhole_jobs_accepted_total 2\n\
            # HELP pinhole_jobs_ended_total Jobs that ended, by how.\n\
            # TYPE pinhole_jobs_ended_total counter\n\
            pinhole_jobs_ended_total{outcome=\"done\"} 1\n\
            pinhole_jobs_ended_total{outcome=\"failed\"} 1\n\
            # HELP pinhole_highest_peak_bytes The highest measured peak of all runs on the device (of several, the first).\n\
            # TYPE pinhole_highest_peak_bytes gauge\n\
            pinhole_highest_peak_bytes 5\n";
        assert_eq!(metrics.text(), expected);
    }
}
