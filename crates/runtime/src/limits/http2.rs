//! What peers can make grow on HTTP/2, and how far.

use std::ops::RangeInclusive;

use super::{bytes, number};
use crate::env::Env;
use crate::names::variables;

/// The largest limit of a head's size that can be set: as many of the smallest fields as `http` can hold in one map, and
/// some that a sidecar adds.
pub const MAX_HEADER_LIST: u32 = 768 << 10;

/// Limits on HTTP/2. Each holds for one connection, whichever side opened it, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// Streams that a peer may have open.
    pub max_streams: u32,
    /// Decoded size of a head: names and values, and 32 for each. A larger one is answered 431; one of more than four
    /// times as much ends the connection.
    pub max_header_list: u32,
    /// Streams that a client outside the mesh may have reset before they were looked at. The app of this pod and
    /// sidecars of peers may reset as many as they may have open.
    pub pending_resets: u32,
    /// Streams that may have to be reset or refused for what the peer sent.
    pub local_resets: u32,
    /// Requests that a client may give up, beyond those that it lets end; a tenth more each second.
    pub given_up: u32,
    /// Control frames that a peer may send beyond what its messages need; a tenth more each second.
    pub control_frames: u32,
    /// Bytes of one message that may be under way towards us: what it can occupy while whoever it is for takes nothing, and
    /// what it moves in a round trip. See [`Http2::window`].
    pub stream_window: u32,
    /// The same for all messages of a connection. A connection that is opened here carries no more streams than have
    /// room in it, so that none can hold up another.
    pub connection_window: u32,
    /// Bytes of one message that wait here until they can be sent.
    pub send_buffer: u32,
}

/// How far away the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is the app of this pod.
    Near,
    /// It may be anywhere.
    Far,
}

/// The window of a stream that fills the way to the app of this pod.
const NEAR: u32 = 64 << 10;

impl Default for Http2 {
    fn default() -> Self {
        Self {
            max_streams: 1_000,
            max_header_list: 16 << 10,
            pending_resets: 20,
            local_resets: 1_000,
            given_up: 1_000,
            control_frames: 1_000,
            stream_window: 256 << 10,
            connection_window: 32 << 20,
            send_buffer: 32 << 10,
        }
    }
}

/// Where the protocol, or what stands on it, ends: at least one of a thing, and windows of 31 bits.
const COUNT: RangeInclusive<u32> = 1..=1_000_000;
const WINDOW: RangeInclusive<u32> = 65_535..=(1 << 31) - 1;
const BUFFER: RangeInclusive<u32> = 16_384..=1 << 30;
const HEADER_LIST: RangeInclusive<u32> = 1_024..=MAX_HEADER_LIST;

impl Http2 {
    /// The window of a stream. Between a sidecar and the app beside it a round trip takes no time, so that more would only
    /// occupy more.
    #[must_use]
    pub fn window(&self, way: Way) -> u32 {
        match way {
            Way::Near => self.stream_window.min(NEAR),
            Way::Far => self.stream_window,
        }
    }

    /// Streams that a connection carries which is opened here.
    #[must_use]
    pub fn streams_upstream(&self, way: Way) -> usize {
        let room = self.connection_window / self.window(way);
        room.clamp(1, self.max_streams) as usize
    }

    pub(super) fn from_env(env: &Env) -> Self {
        let default = Self::default();
        let count = |name, default| number(env, name, COUNT).unwrap_or(default);
        let size = |name, range: RangeInclusive<u32>, default| {
            let range = u64::from(*range.start())..=u64::from(*range.end());
            let size = bytes(env, name, range);
            size.and_then(|size| u32::try_from(size).ok())
                .unwrap_or(default)
        };
        Self {
            max_streams: count(variables::H2_MAX_STREAMS, default.max_streams),
            max_header_list: size(
                variables::H2_MAX_HEADER_LIST,
                HEADER_LIST,
                default.max_header_list,
            ),
            pending_resets: count(variables::H2_PENDING_RESETS, default.pending_resets),
            local_resets: count(variables::H2_LOCAL_RESETS, default.local_resets),
            given_up: count(variables::H2_GIVEN_UP, default.given_up),
            control_frames: count(variables::H2_CONTROL_FRAMES, default.control_frames),
            stream_window: size(variables::H2_STREAM_WINDOW, WINDOW, default.stream_window),
            connection_window: size(
                variables::H2_CONNECTION_WINDOW,
                WINDOW,
                default.connection_window,
            ),
            send_buffer: size(variables::H2_SEND_BUFFER, BUFFER, default.send_buffer),
        }
    }
}
