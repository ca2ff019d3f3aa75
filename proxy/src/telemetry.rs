//! What the data path tells the outside world about requests and connections.
//!
//! The data path fills one plain record per request or connection and hands it over once, when the exchange is over.
//! Behind it stand Istio's standard metrics and an access log. A worker remembers the series that it counts in, by the
//! addresses of the config that a request used, until a new snapshot comes; so counting a request takes no lock and
//! allocates nothing.

mod access_log;
mod connection;
mod histogram;
mod json;
mod labels;
mod limits;
mod metrics;
pub mod record;
mod series;

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tulle_identity::SpiffeId;

#[cfg(feature = "fuzz")]
pub(crate) use access_log::lines_of;
pub use access_log::{AccessLog, Mode as AccessLogMode};
pub use connection::ConnectionRecord;
pub use limits::{Limit, Limits, Who};
pub use record::{RefusedHead, RequestRecord, ResponseFlag, ResponseFlags};
pub use series::TcpSession;

use crate::config::{Config, Workload};
use access_log::Lines;
use metrics::Metrics;
use series::Cache;

/// Who we are, for our end of the labels.
#[derive(Clone, Debug)]
pub struct Local {
    /// Our pod's address: what the control plane knows under it describes us.
    pub address: IpAddr,
    /// Our identity.
    pub id: SpiffeId,
    /// What we know of ourselves before the control plane has said more.
    pub workload: Arc<Workload>,
}

/// What the telemetry of all workers shares.
#[derive(Debug)]
pub struct Hub {
    config: Config,
    local: Local,
    metrics: Arc<Metrics>,
    log: Option<Arc<AccessLog>>,
}

impl Hub {
    /// Registers the metrics (the registry has no prefix: the names are Istio's) and opens the log.
    pub fn new(
        config: Config,
        local: Local,
        log: Option<AccessLog>,
        registry: &mut Registry,
    ) -> Arc<Self> {
        let log = log.map(Arc::new);
        let metrics = Arc::new(Metrics::new(log.clone()));
        registry.register_collector(Box::new(metrics.clone()));
        Arc::new(Self {
            config,
            local,
            metrics,
            log,
        })
    }

    /// The data path has ended: writes what the access log still holds. Exiting the process would not.
    pub fn close(&self) {
        if let Some(log) = &self.log {
            log.close();
        }
    }
}

/// Takes the records of one worker. The default one forgets them.
#[derive(Debug, Default)]
pub struct Telemetry {
    export: Option<Export>,
    #[cfg(test)]
    seen: RefCell<Vec<RequestRecord>>,
    #[cfg(test)]
    seen_connections: RefCell<Vec<ConnectionRecord>>,
    #[cfg(test)]
    seen_refused: RefCell<Vec<(http::StatusCode, &'static str)>>,
}

#[derive(Debug)]
struct Export {
    hub: Arc<Hub>,
    cache: RefCell<Cache>,
    lines: Option<RefCell<Lines>>,
    /// Rung when there are lines to hand over, and there were none before.
    waiting: Notify,
}

impl Export {
    fn log(&self, write: impl FnOnce(&mut Lines)) {
        let Some(lines) = &self.lines else { return };
        let mut lines = lines.borrow_mut();
        if lines.is_empty() {
            self.waiting.notify_one();
        }
        write(&mut lines);
    }
}

impl Telemetry {
    /// The telemetry of one worker.
    #[must_use]
    pub fn new(hub: Arc<Hub>) -> Self {
        let lines = hub.log.as_ref().map(|log| RefCell::new(log.lines()));
        let cache = RefCell::default();
        Self {
            export: Some(Export {
                hub,
                cache,
                lines,
                waiting: Notify::new(),
            }),
            #[cfg(test)]
            seen: RefCell::default(),
            #[cfg(test)]
            seen_connections: RefCell::default(),
            #[cfg(test)]
            seen_refused: RefCell::default(),
        }
    }

    /// A request is over.
    pub fn request(&self, record: &RequestRecord) {
        if let Some(export) = &self.export {
            export
                .cache
                .borrow_mut()
                .http(&export.hub, record)
                .observe(record);
            export.log(|lines| lines.request(record));
        }
        #[cfg(test)]
        self.seen.borrow_mut().push(record.clone());
    }

    /// A head was refused: it goes to the access log. There is no request that could be counted.
    pub fn refused(&self, head: &RefusedHead<'_>) {
        if let Some(export) = &self.export {
            export.log(|lines| lines.refused(head));
        }
        #[cfg(test)]
        self.seen_refused
            .borrow_mut()
            .push((head.status, head.details));
    }

    /// An opaque connection goes upstream. What moves on it is counted through the session, live; its end is the drop.
    #[must_use]
    pub fn connection_opened(&self, record: &ConnectionRecord) -> TcpSession {
        match &self.export {
            Some(export) => TcpSession::new(export.cache.borrow_mut().tcp(&export.hub, record)),
            None => TcpSession::default(),
        }
    }

    /// An opaque connection did not get anywhere: it is counted as opened and closed at once.
    pub fn connection_failed(&self, record: &ConnectionRecord) {
        drop(self.connection_opened(record));
        self.connection(record);
    }

    /// An opaque connection is over: it goes to the access log.
    pub fn connection(&self, record: &ConnectionRecord) {
        #[cfg(test)]
        self.seen_connections.borrow_mut().push(record.clone());
        if let Some(export) = &self.export {
            export.log(|lines| lines.connection(record));
        }
    }

    /// Hands lines of the access log over that wait for too long. One task of the worker runs this, for ever.
    pub async fn hand_over_lines(&self) {
        let export = self.export.as_ref();
        let Some((export, lines)) = export.and_then(|it| Some((it, it.lines.as_ref()?))) else {
            return std::future::pending().await;
        };
        loop {
            export.waiting.notified().await;
            tokio::time::sleep(access_log::DELAY).await;
            lines.borrow_mut().hand_over();
        }
    }

    /// Takes what was seen so far.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<RequestRecord> {
        self.seen.take()
    }

    /// Takes the refused heads that were seen so far: status and details.
    #[cfg(test)]
    pub(crate) fn take_refused(&self) -> Vec<(http::StatusCode, &'static str)> {
        self.seen_refused.take()
    }

    /// Takes the opaque connections that were seen so far.
    #[cfg(test)]
    pub(crate) fn take_connections(&self) -> Vec<ConnectionRecord> {
        self.seen_connections.take()
    }
}

#[cfg(test)]
mod tests;
