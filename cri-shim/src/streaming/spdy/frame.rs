//! Frames: bytes to values and back (draft §2.2). Pure, except that header blocks stay compressed here.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longer frames are refused; upstream's clients send at most 32 KiB.
const MAX_LENGTH: usize = 1 << 22;

/// A data frame's or stream's last.
pub(super) const FLAG_FIN: u8 = 1;

/// Why a stream ends early (draft §2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    InvalidStream = 2,
    RefusedStream = 3,
    Cancel = 5,
}

/// A frame, as far as we know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    SynStream {
        stream: u32,
        fin: bool,
        headers: Bytes,
    },
    SynReply {
        stream: u32,
        headers: Bytes,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// Later headers; they belong to the compression's state even if nobody wants them.
    Headers {
        headers: Bytes,
    },
    /// One that has no meaning for us: settings, window updates.
    Other,
}

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const HEADERS: u16 = 8;

const VERSION: u16 = 3;

/// The peer doesn't speak SPDY/3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("frame of {0} bytes")]
    TooLong(usize),
    #[error("SPDY version {0}")]
    Version(u16),
    #[error("control frame of type {0} is too short")]
    TooShort(u16),
}

/// Takes the first frame off `buffer`; `None` if it isn't whole yet.
pub(super) fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let Some(head) = buffer.first_chunk::<8>() else {
        return Ok(None);
    };
    let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let fin = head[4] & FLAG_FIN != 0;
    let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
    if length > MAX_LENGTH {
        return Err(Malformed::TooLong(length));
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    let body = buffer.split_to(length).freeze();
    if first >> 31 == 0 {
        return Ok(Some(Frame::Data {
            stream: first,
            fin,
            data: body,
        }));
    }
    let (version, kind) = (((first >> 16) & 0x7fff) as u16, first as u16);
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    control(kind, fin, body).map(Some)
}

fn control(kind: u16, fin: bool, body: Bytes) -> Result<Frame, Malformed> {
    let word = |at: usize| -> Result<u32, Malformed> {
        let bytes = body
            .get(at..at + 4)
            .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes
            .map(u32::from_be_bytes)
            .ok_or(Malformed::TooShort(kind))
    };
    let rest = |from: usize| {
        if body.len() < from {
            Err(Malformed::TooShort(kind))
        } else {
            Ok(body.slice(from..))
        }
    };
    let stream = || word(0).map(|word| word & 0x7fff_ffff);
    Ok(match kind {
        SYN_STREAM => Frame::SynStream {
            stream: stream()?,
            fin,
            headers: rest(10)?,
        },
        SYN_REPLY => Frame::SynReply {
            stream: stream()?,
            headers: rest(4)?,
        },
        RST_STREAM => Frame::RstStream {
            stream: stream()?,
            status: word(4)?,
        },
        PING => Frame::Ping { id: word(0)? },
        GO_AWAY => Frame::GoAway,
        HEADERS => Frame::Headers { headers: rest(4)? },
        _ => Frame::Other,
    })
}

/// Appends a frame to `out`.
pub(super) fn encode(frame: &Frame, out: &mut BytesMut) {
    match frame {
        Frame::Data { stream, fin, data } => {
            out.put_u32(*stream & 0x7fff_ffff);
            put_flags_and_length(out, *fin, data.len());
            out.extend_from_slice(data);
        }
        Frame::SynStream {
            stream,
            fin,
            headers,
        } => {
            put_control(out, SYN_STREAM, *fin, 10 + headers.len());
            out.put_u32(*stream);
            out.put_slice(&[0; 6]);
            out.extend_from_slice(headers);
        }
        Frame::SynReply { stream, headers } => {
            put_control(out, SYN_REPLY, false, 4 + headers.len());
            out.put_u32(*stream);
            out.extend_from_slice(headers);
        }
        Frame::RstStream { stream, status } => {
            put_control(out, RST_STREAM, false, 8);
            out.put_u32(*stream);
            out.put_u32(*status);
        }
        Frame::Ping { id } => {
            put_control(out, PING, false, 4);
            out.put_u32(*id);
        }
        Frame::GoAway => {
            put_control(out, GO_AWAY, false, 8);
            out.put_u64(0);
        }
        Frame::Headers { .. } | Frame::Other => {} // never ours
    }
}

fn put_control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    put_flags_and_length(out, fin, length);
}

fn put_flags_and_length(out: &mut BytesMut, fin: bool, length: usize) {
    out.put_u8(if fin { FLAG_FIN } else { 0 });
    out.put_uint(length as u64, 3);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> Vec<Frame> {
        let body = Bytes::from_static(b"body");
        vec![
            Frame::Data {
                stream: 3,
                fin: true,
                data: body.clone(),
            },
            Frame::SynStream {
                stream: 5,
                fin: false,
                headers: body.clone(),
            },
            Frame::SynReply {
                stream: 5,
                headers: body,
            },
            Frame::RstStream {
                stream: 7,
                status: Reset::Cancel as u32,
            },
            Frame::Ping { id: 9 },
            Frame::GoAway,
        ]
    }

    #[test]
    fn frames_are_read_back_from_any_chunks() {
        let mut bytes = BytesMut::new();
        frames().iter().for_each(|frame| encode(frame, &mut bytes));
        let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
        for byte in bytes {
            buffer.put_u8(byte);
            while let Some(frame) = decode(&mut buffer).unwrap() {
                read.push(frame);
            }
        }
        assert_eq!(read, frames());
    }

    #[test]
    fn what_is_not_spdy_3_is_refused() {
        let mut http = BytesMut::from(&b"\xff\xff\0\x01\0\0\0\0"[..]);
        assert_eq!(decode(&mut http), Err(Malformed::Version(0x7fff)));
        let mut short = BytesMut::from(&b"\x80\x03\0\x01\0\0\0\x02ab"[..]);
        assert_eq!(decode(&mut short), Err(Malformed::TooShort(1)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }
}
