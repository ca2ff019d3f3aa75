//! What the data path tells the outside world about requests and connections.
//!
//! The data path fills one plain record per request and hands it over once, when the exchange is over.

pub mod record;

pub use record::{RequestRecord, ResponseFlag, ResponseFlags};

/// Takes the records of one worker.
#[derive(Debug, Default)]
pub struct Telemetry {
    #[cfg(test)]
    seen: std::cell::RefCell<Vec<RequestRecord>>,
}

impl Telemetry {
    /// A request is over.
    pub fn request(&self, record: &RequestRecord) {
        tracing::trace!(
            status = record.status.as_u16(),
            flags = %record.flags,
            route = record.route.as_ref().map_or("", |route| &route.name),
            "request"
        );
        #[cfg(test)]
        self.seen.borrow_mut().push(record.clone());
    }

    /// Takes what was seen so far.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<RequestRecord> {
        self.seen.take()
    }
}
