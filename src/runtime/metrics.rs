//! The metrics registry, which remembers what it registered so that the reference of metrics is made from code.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

use parking_lot::Mutex;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, core::Collector, proto::MetricFamily,
};

/// Buckets, in seconds, of everything that lasts as long as a request: a millisecond to two hours.
pub const DURATION_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0,
    240.0, 300.0, 480.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0, 5400.0, 7200.0,
];

/// Buckets, in seconds, of what the gateway itself adds: ten microseconds to one second.
pub const SHORT_BUCKETS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0,
];

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A count that only grows.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// A distribution over buckets.
    Histogram,
}

impl Kind {
    /// The name Prometheus gives it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A registered metric, as the reference of metrics shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The full name.
    pub name: String,
    /// What it counts or measures.
    pub help: String,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels, in the order in which values are given.
    pub labels: Vec<String>,
}

/// Registers metrics; clones share the registry.
///
/// Asking twice for the same metric gives the same one, so two parts may count on it without knowing of each other.
/// Asking for another kind, help or set of labels under a name that is taken is a bug of ours, and panics.
#[derive(Clone)]
pub struct Registrar {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    duration_buckets: Vec<f64>,
    known: Mutex<BTreeMap<String, Known>>,
    hooks: Mutex<Vec<Hook>>,
}

struct Known {
    description: Description,
    /// The metric itself; its type is what the kind and the presence of labels say.
    metric: Box<dyn Any + Send>,
}

type Hook = Arc<dyn Fn() + Send + Sync>;

impl Registrar {
    /// An empty registry.
    pub fn new() -> Self {
        Self::with_duration_buckets(DURATION_BUCKETS)
    }

    /// An empty registry in which `buckets` stand wherever a histogram asks for [`DURATION_BUCKETS`]. They are sorted
    /// here; those that are not finite and positive are left out, and if none is left the usual ones stay.
    pub fn with_duration_buckets(buckets: &[f64]) -> Self {
        let mut chosen: Vec<f64> = buckets.iter().copied().filter(|bound| bound.is_finite() && *bound > 0.0).collect();
        chosen.sort_by(f64::total_cmp);
        chosen.dedup();
        if chosen.is_empty() {
            chosen = DURATION_BUCKETS.to_vec();
        }
        let inner = Inner {
            registry: Registry::new(),
            duration_buckets: chosen,
            known: Mutex::default(),
            hooks: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A counter without labels.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(Kind::Counter, &Opts::new(name, help), &[], IntCounter::with_opts)
    }

    /// A counter per combination of label values.
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(Kind::Counter, &Opts::new(name, help), labels, |opts| IntCounterVec::new(opts, labels))
    }

    /// A whole-numbered gauge without labels.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(Kind::Gauge, &Opts::new(name, help), &[], IntGauge::with_opts)
    }

    /// A whole-numbered gauge per combination of label values.
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(Kind::Gauge, &Opts::new(name, help), labels, |opts| IntGaugeVec::new(opts, labels))
    }

    /// A gauge without labels.
    pub fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Kind::Gauge, &Opts::new(name, help), &[], Gauge::with_opts)
    }

    /// A gauge per combination of label values.
    pub fn float_gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(Kind::Gauge, &Opts::new(name, help), labels, |opts| GaugeVec::new(opts, labels))
    }

    /// A histogram without labels.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let buckets = self.buckets(buckets);
        self.register(Kind::Histogram, &Opts::new(name, help), &[], |opts| {
            Histogram::with_opts(HistogramOpts::from(opts).buckets(buckets))
        })
    }

    /// A histogram per combination of label values.
    pub fn histogram_vec(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let buckets = self.buckets(buckets);
        self.register(Kind::Histogram, &Opts::new(name, help), labels, |opts| {
            HistogramVec::new(HistogramOpts::from(opts).buckets(buckets), labels)
        })
    }

    /// Takes in a collector made elsewhere. Its metrics count as counters if their names end in `_total`, else as
    /// gauges.
    pub fn collector(&self, collector: Box<dyn Collector>) {
        let descriptions: Vec<_> = collector.desc().into_iter().map(foreign).collect();
        let mut known = self.inner.known.lock();
        if descriptions.iter().any(|description| known.contains_key(&description.name)) {
            return;
        }
        self.inner.registry.register(collector).expect("names were checked and no other registry is involved");
        for description in descriptions {
            known.insert(description.name.clone(), Known { description, metric: Box::new(()) });
        }
    }

    /// Calls `hook` before each reading, to bring gauges up to date that would be dear to keep so.
    pub fn on_gather(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.inner.hooks.lock().push(Arc::new(hook));
    }

    /// The registry behind this. Reading it directly skips the hooks of [`Registrar::on_gather`].
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// Everything registered, by name.
    pub fn descriptions(&self) -> Vec<Description> {
        self.inner.known.lock().values().map(|known| known.description.clone()).collect()
    }

    /// Runs the hooks, then reads every metric.
    pub fn gather(&self) -> Vec<MetricFamily> {
        let hooks = self.inner.hooks.lock().clone();
        for hook in hooks {
            hook();
        }
        self.inner.registry.gather()
    }

    /// All metrics in Prometheus's text format.
    pub fn encode(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.gather(), &mut text).expect("gathered families are complete");
        String::from_utf8(text).expect("the encoder writes text")
    }

    fn buckets(&self, asked: &[f64]) -> Vec<f64> {
        if asked == DURATION_BUCKETS { self.inner.duration_buckets.clone() } else { asked.to_vec() }
    }

    fn register<M>(
        &self,
        kind: Kind,
        opts: &Opts,
        labels: &[&str],
        make: impl FnOnce(Opts) -> prometheus::Result<M>,
    ) -> M
    where
        M: Collector + Clone + 'static,
    {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let description = Description { name: opts.name.clone(), help: opts.help.clone(), kind, labels };
        let mut known = self.inner.known.lock();
        if let Some(earlier) = known.get(&opts.name) {
            assert_eq!(earlier.description, description, "a metric's name is taken by another metric");
            let metric = earlier.metric.downcast_ref::<M>();
            return metric.expect("metrics of one description have one type").clone();
        }
        let metric = make(opts.clone()).expect("our metrics have valid names, labels and buckets");
        self.inner.registry.register(Box::new(metric.clone())).expect("the name was free");
        known.insert(opts.name.clone(), Known { description, metric: Box::new(metric.clone()) });
        metric
    }
}

impl Default for Registrar {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registrar").field("metrics", &self.inner.known.lock().len()).finish_non_exhaustive()
    }
}

/// Raises `counter` to `total`, a count that is kept elsewhere and never falls.
pub fn catch_up(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn foreign(desc: &prometheus::core::Desc) -> Description {
    Description {
        name: desc.fq_name.clone(),
        help: desc.help.clone(),
        kind: if desc.fq_name.ends_with("_total") { Kind::Counter } else { Kind::Gauge },
        labels: desc.variable_labels.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_metric_asked_for_twice_is_one() {
        let registrar = Registrar::new();
        registrar.counter("smg_things_total", "Things.").inc();
        let shared = registrar.clone();
        shared.counter("smg_things_total", "Things.").inc();
        registrar.histogram_vec("smg_x_seconds", "X.", &["a"], SHORT_BUCKETS).with_label_values(&["b"]).observe(0.002);
        registrar.histogram_vec("smg_x_seconds", "X.", &["a"], SHORT_BUCKETS).with_label_values(&["b"]).observe(0.002);
        let text = registrar.encode();
        assert!(text.contains("smg_things_total 2"), "{text}");
        assert!(text.contains("smg_x_seconds_count{a=\"b\"} 2"), "{text}");
        assert!(text.contains("smg_x_seconds_bucket{a=\"b\",le=\"0.001\"} 0"), "{text}");
    }

    #[test]
    #[should_panic(expected = "taken by another metric")]
    fn a_name_stands_for_one_metric() {
        let registrar = Registrar::new();
        registrar.counter("smg_things_total", "Things.");
        registrar.counter_vec("smg_things_total", "Things.", &["colour"]);
    }

    #[test]
    fn chosen_duration_buckets_replace_the_usual_ones_only() {
        let registrar = Registrar::with_duration_buckets(&[2.0, f64::NAN, 0.5, 2.0]);
        registrar.histogram("smg_long_seconds", "Long.", DURATION_BUCKETS).observe(1.0);
        registrar.histogram("smg_short_seconds", "Short.", SHORT_BUCKETS).observe(1.0);
        let text = registrar.encode();
        let bounds = |name: &str| text.lines().filter(|line| line.starts_with(&format!("{name}_bucket"))).count();
        assert_eq!(bounds("smg_long_seconds"), 3, "{text}");
        assert_eq!(bounds("smg_short_seconds"), SHORT_BUCKETS.len() + 1);
    }

    #[test]
    fn hooks_run_before_a_reading() {
        let registrar = Registrar::new();
        let gauge = registrar.gauge("smg_level", "Level.");
        registrar.on_gather(move || gauge.add(5));
        assert!(registrar.encode().contains("smg_level 5"));
        assert!(registrar.encode().contains("smg_level 10"));
    }

    #[test]
    fn descriptions_tell_what_was_registered() {
        let registrar = Registrar::new();
        registrar.float_gauge_vec("smg_b", "B.", &["x", "y"]);
        registrar.counter("smg_a_total", "A.");
        let [a, b] = registrar.descriptions().try_into().expect("two metrics");
        assert_eq!((a.name.as_str(), a.kind, a.labels.len()), ("smg_a_total", Kind::Counter, 0));
        assert_eq!((b.help.as_str(), b.kind, b.labels.join(",")), ("B.", Kind::Gauge, "x,y".to_owned()));
    }
}
