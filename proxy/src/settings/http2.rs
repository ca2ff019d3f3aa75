//! What peers can make grow on HTTP/2, and how far.

use std::ops::RangeInclusive;

use tulle_runtime::env::Env;
use tulle_runtime::names::variables;

use crate::io::MAX_HEADER_LIST;

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
    /// Bytes of one message that may be under way towards us: what it can occupy while whoever it is for takes nothing.
    pub stream_window: u32,
    /// The same for all messages of a connection. A connection that is opened here carries no more streams than have
    /// room in it, so that none can hold up another.
    pub connection_window: u32,
    /// Bytes of one message that wait here until they can be sent.
    pub send_buffer: u32,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            max_streams: 1_000,
            max_header_list: 16 << 10,
            pending_resets: 20,
            local_resets: 1_000,
            given_up: 1_000,
            control_frames: 1_000,
            stream_window: 64 << 10,
            connection_window: 16 << 20,
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
    /// Streams that a connection carries which is opened here.
    #[must_use]
    pub fn streams_upstream(&self) -> usize {
        let room = self.connection_window / self.stream_window;
        room.clamp(1, self.max_streams) as usize
    }

    pub(super) fn from_env(env: &Env) -> Self {
        let default = Self::default();
        let number = |name, range, default| number(env, name, range, default);
        Self {
            max_streams: number(variables::H2_MAX_STREAMS, COUNT, default.max_streams),
            max_header_list: number(
                variables::H2_MAX_HEADER_LIST,
                HEADER_LIST,
                default.max_header_list,
            ),
            pending_resets: number(variables::H2_PENDING_RESETS, COUNT, default.pending_resets),
            local_resets: number(variables::H2_LOCAL_RESETS, COUNT, default.local_resets),
            given_up: number(variables::H2_GIVEN_UP, COUNT, default.given_up),
            control_frames: number(variables::H2_CONTROL_FRAMES, COUNT, default.control_frames),
            stream_window: number(variables::H2_STREAM_WINDOW, WINDOW, default.stream_window),
            connection_window: number(
                variables::H2_CONNECTION_WINDOW,
                WINDOW,
                default.connection_window,
            ),
            send_buffer: number(variables::H2_SEND_BUFFER, BUFFER, default.send_buffer),
        }
    }
}

fn number(env: &Env, name: &str, range: RangeInclusive<u32>, default: u32) -> u32 {
    match env.get(name) {
        Some(number) if range.contains(&number) => number,
        Some(_) => {
            let (least, most) = (range.start(), range.end());
            env.reject(name, format!("use a number from {least} to {most}"));
            default
        }
        None => default,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_can_be_set() {
        let set = [
            (variables::H2_MAX_STREAMS, "1"),
            (variables::H2_MAX_HEADER_LIST, "20000"),
            (variables::H2_PENDING_RESETS, "3"),
            (variables::H2_LOCAL_RESETS, "4"),
            (variables::H2_GIVEN_UP, "5"),
            (variables::H2_CONTROL_FRAMES, "6"),
            (variables::H2_STREAM_WINDOW, "70000"),
            (variables::H2_CONNECTION_WINDOW, "80000"),
            (variables::H2_SEND_BUFFER, "90000"),
        ];
        let read = Http2::from_env(&Env::from_pairs(set));
        let expected = Http2 {
            max_streams: 1,
            max_header_list: 20_000,
            pending_resets: 3,
            local_resets: 4,
            given_up: 5,
            control_frames: 6,
            stream_window: 70_000,
            connection_window: 80_000,
            send_buffer: 90_000,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn streams_that_are_opened_here_have_room_for_each_other() {
        let limits = Http2::default();
        assert_eq!(limits.streams_upstream(), 256);
        let narrow = Http2 {
            connection_window: 65_535,
            stream_window: 100_000,
            ..limits
        };
        assert_eq!(narrow.streams_upstream(), 1);
        let wide = Http2 {
            connection_window: (1 << 31) - 1,
            ..limits
        };
        assert_eq!(wide.streams_upstream(), 1_000);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (name, value) in [
            (variables::H2_MAX_STREAMS, "0"),
            (variables::H2_MAX_HEADER_LIST, "2000000"),
            (variables::H2_STREAM_WINDOW, "100"),
            (variables::H2_CONNECTION_WINDOW, "4294967295"),
        ] {
            let env = Env::from_pairs([(name, value)]);
            assert_eq!(Http2::from_env(&env), Http2::default());
            let error = env.finish().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
