//! Entrances for the fuzz targets (`tests/fuzz`) to parsers that no other crate may call.
//!
//! Only with the feature `fuzz`, which no program has.

use crate::ObjectKey;
use crate::dns::Zone;

/// The names of a cluster, and who answers for them.
#[derive(Debug)]
pub struct Dns(Zone);

impl Dns {
    /// Of a cluster with these Services and no endpoints, as their manifests have them.
    ///
    /// # Errors
    /// If one is no Service.
    pub fn new(services: &[(&str, &str, &str)]) -> Result<Self, serde_json::Error> {
        let mut zone = Zone::default();
        for (namespace, name, service) in services {
            let key = ObjectKey::new(*namespace, *name);
            zone.add(&key, &serde_json::from_str(service)?, &[]);
        }
        Ok(Self(zone))
    }

    /// The answer to a datagram.
    #[must_use]
    pub fn over_udp(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.0.answer_udp(message)
    }

    /// The answer to a message on a connection.
    #[must_use]
    pub fn over_tcp(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.0.answer(message)?.to_vec().ok()
    }
}

/// What the text of a manifest file says: kinds and names of what the sandbox knows, and what is wrong where.
#[must_use]
pub fn manifest(text: &str) -> (Vec<(&'static str, ObjectKey)>, Vec<(u64, String)>) {
    crate::manifests::objects(text)
}
