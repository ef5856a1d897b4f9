//! What can go wrong on the way.

use super::http::Response;
use std::time::Duration;

/// A way in which an answer is not what it should be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// This status instead, with headers.
    Status(u16, Vec<(String, String)>),
    /// The connection is closed after this many bytes of the body.
    Truncate(usize),
    /// Nothing more after this many bytes of the body, for this long; 0 bytes also withholds the head.
    Hang(usize, Duration),
    /// The first byte of the body is another.
    Corrupt,
    /// This header is set to another value, or left out.
    Header(String, Option<String>),
    /// This body.
    Body(Vec<u8>),
    /// The whole file, whatever part was asked for.
    IgnoreRange,
    /// The body comes in pieces of this many bytes with a pause after each.
    Slow(usize, Duration),
    /// A head that does not end before it is this long.
    EndlessHead(usize),
    /// A redirect to this place.
    Redirect(String),
}

#[derive(Debug)]
pub(super) struct Planted {
    pub(super) request: String,
    pub(super) times: usize,
    pub(super) fault: Fault,
}

impl Fault {
    /// What the fault makes of an answer, before it is sent.
    pub(super) fn instead_of(&self, right: &Response) -> Response {
        let mut response = right.clone();
        match self {
            Self::Status(status, headers) => {
                response = Response::text(*status, "planted");
                for (name, value) in headers {
                    response.set(name, value);
                }
            }
            Self::Redirect(place) => {
                response = Response::text(302, "");
                response.set("location", place);
            }
            Self::Header(name, Some(value)) => response.set(name, value),
            Self::Header(name, None) => response.remove(name),
            Self::Corrupt => {
                if let Some(byte) = response.body.first_mut() {
                    *byte ^= 0x20;
                }
            }
            Self::Body(body) => response.body.clone_from(body),
            Self::IgnoreRange => response.ranges = false,
            Self::Truncate(_) | Self::Hang(..) | Self::Slow(..) | Self::EndlessHead(_) => {}
        }
        response
    }
}
