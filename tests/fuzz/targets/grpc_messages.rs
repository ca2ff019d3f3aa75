//! gRPC message framing.
//!
//! The count is the same however data frames cut the body, it never shrinks, and where the body is well formed to its end
//! it is the number of messages that a plain reader finds.

#![no_main]

use tulle_fuzz::input::seed;
use tulle_proxy::grpc::Messages;

tulle_fuzz::target!(|data: &[u8]| {
    let mut whole = Messages::default();
    whole.note(data);
    for size in [1, 2 + (seed(data) % 61) as usize] {
        let mut cut = Messages::default();
        for frame in data.chunks(size) {
            let before = cut.count();
            cut.note(frame);
            cut.note(&[]);
            assert!(cut.count() >= before);
        }
        assert_eq!(cut.count(), whole.count(), "frames of {size}");
    }
    assert_eq!(whole.count(), plain(data));
});

/// Complete prefixes, as far as they are some.
fn plain(mut body: &[u8]) -> u64 {
    let mut count = 0;
    while let [0 | 1, a, b, c, d, rest @ ..] = body {
        count += 1;
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        body = rest.get(length..).unwrap_or_default();
    }
    count
}
