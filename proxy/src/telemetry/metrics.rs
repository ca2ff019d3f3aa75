//! Istio's standard metrics, under its names: `istio_requests_total` and the rest.
//!
//! One table of series for HTTP and one for TCP, shared by all workers. A worker looks a series up once and then holds
//! it; counting is a few relaxed atomics. The tables are bounded: what comes after the last free place is counted under
//! `unknown` labels, and that it was is counted too.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::access_log::AccessLog;
use super::histogram::Histogram;
use super::labels::Labels;
use super::record::RequestRecord;

/// `request_protocol` of gRPC calls.
pub(super) const GRPC: &str = "grpc";
/// Series of HTTP, and again of TCP, that get labels of their own.
const MAX_SERIES: usize = 1_000;

/// Everything that is counted about requests and connections.
#[derive(Debug)]
pub(super) struct Metrics {
    http: Table<HttpSeries>,
    tcp: Table<TcpSeries>,
    overflows: AtomicU64,
    log: Option<Arc<AccessLog>>,
}

/// What is counted about the requests of one set of labels.
#[derive(Debug, Default)]
pub(super) struct HttpSeries {
    /// Its count is the number of requests.
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

/// What is counted about the connections of one set of labels.
#[derive(Debug, Default)]
pub(super) struct TcpSeries {
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

impl Metrics {
    pub(super) fn new(log: Option<Arc<AccessLog>>) -> Self {
        let (http, tcp) = (Table::default(), Table::default());
        Self {
            http,
            tcp,
            overflows: AtomicU64::new(0),
            log,
        }
    }

    /// The series of HTTP that has these labels.
    pub(super) fn http(&self, labels: &Labels) -> Arc<HttpSeries> {
        self.http.series(labels, &self.overflows)
    }

    /// The series of TCP that has these labels.
    pub(super) fn tcp(&self, labels: &Labels) -> Arc<TcpSeries> {
        self.tcp.series(labels, &self.overflows)
    }
}

impl HttpSeries {
    /// Counts a request that is over.
    pub(super) fn observe(&self, record: &RequestRecord) {
        let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        self.duration.observe_thousandths(micros);
        self.request_bytes.observe(record.bytes_received);
        self.response_bytes.observe(record.bytes_sent);
        if record.grpc {
            let (received, sent) = (record.messages_received, record.messages_sent);
            self.request_messages
                .fetch_add(received.count(), Ordering::Relaxed);
            self.response_messages
                .fetch_add(sent.count(), Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Table<S>(Mutex<HashMap<Arc<Labels>, Arc<S>>>);

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<S: Default> Table<S> {
    fn series(&self, labels: &Labels, overflows: &AtomicU64) -> Arc<S> {
        let mut table = self.0.lock();
        if let Some(series) = table.get(labels) {
            return series.clone();
        }
        let labels = if table.len() < MAX_SERIES {
            labels.clone()
        } else {
            overflows.fetch_add(1, Ordering::Relaxed);
            labels.overflow()
        };
        table.entry(Arc::new(labels)).or_default().clone()
    }

    /// A copy to encode from, so that a scrape does not hold workers up.
    fn all(&self) -> Vec<(Arc<Labels>, Arc<S>)> {
        self.0
            .lock()
            .iter()
            .map(|(labels, series)| (labels.clone(), series.clone()))
            .collect()
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encode_http(&mut encoder, &self.http.all())?;
        encode_tcp(&mut encoder, &self.tcp.all())?;
        plain(
            &mut encoder,
            "tulle_telemetry_overflows",
            "Sets of labels that found no place among the series.",
            self.overflows.load(Ordering::Relaxed),
        )?;
        if let Some(log) = &self.log {
            plain(
                &mut encoder,
                "tulle_access_log_dropped_lines",
                "Lines that the log's reader was too slow for.",
                log.dropped_lines(),
            )?;
        }
        Ok(())
    }
}

type All<S> = [(Arc<Labels>, Arc<S>)];

fn encode_http(out: &mut DescriptorEncoder<'_>, all: &All<HttpSeries>) -> fmt::Result {
    counter(out, "istio_requests", "Requests.", all, |s| {
        s.duration.count()
    })?;
    let rows: [Row<HttpSeries, Histogram>; 3] = [
        (
            "istio_request_duration_milliseconds",
            "Duration of requests.",
            |s| &s.duration,
        ),
        ("istio_request_bytes", "Sizes of request bodies.", |s| {
            &s.request_bytes
        }),
        ("istio_response_bytes", "Sizes of response bodies.", |s| {
            &s.response_bytes
        }),
    ];
    for (name, help, value) in rows {
        histogram(out, name, help, all, value)?;
    }
    let calls: Vec<_> = all
        .iter()
        .filter(|(labels, _)| labels.protocol == GRPC)
        .cloned()
        .collect();
    counters(
        out,
        &calls,
        &[
            (
                "istio_request_messages",
                "gRPC messages sent by clients.",
                |s| &s.request_messages,
            ),
            (
                "istio_response_messages",
                "gRPC messages sent by servers.",
                |s| &s.response_messages,
            ),
        ],
    )
}

fn encode_tcp(out: &mut DescriptorEncoder<'_>, all: &All<TcpSeries>) -> fmt::Result {
    counters(
        out,
        all,
        &[
            ("istio_tcp_connections_opened", "Connections opened.", |s| {
                &s.opened
            }),
            ("istio_tcp_connections_closed", "Connections closed.", |s| {
                &s.closed
            }),
            ("istio_tcp_sent_bytes", "Bytes sent in responses.", |s| {
                &s.sent
            }),
            (
                "istio_tcp_received_bytes",
                "Bytes received in requests.",
                |s| &s.received,
            ),
        ],
    )
}

/// Name and help of a metric, and where its value is.
type Row<S, T> = (&'static str, &'static str, fn(&S) -> &T);

fn counters<S>(
    out: &mut DescriptorEncoder<'_>,
    all: &All<S>,
    rows: &[Row<S, AtomicU64>],
) -> fmt::Result {
    rows.iter().try_for_each(|(name, help, field)| {
        counter(out, name, help, all, |s| field(s).load(Ordering::Relaxed))
    })
}

fn family<S>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    series: &All<S>,
    one: impl Fn(&S, MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, series) in series {
        one(series, metric.encode_family(&**labels)?)?;
    }
    Ok(())
}

fn counter<S>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: &All<S>,
    value: impl Fn(&S) -> u64,
) -> fmt::Result {
    family(
        encoder,
        (name, help, MetricType::Counter),
        series,
        |series, mut metric| metric.encode_counter::<NoLabelSet, _, u64>(&value(series), None),
    )
}

fn histogram<S>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: &All<S>,
    value: impl Fn(&S) -> &Histogram,
) -> fmt::Result {
    family(
        encoder,
        (name, help, MetricType::Histogram),
        series,
        |series, metric| value(series).encode(metric),
    )
}

fn plain(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}
