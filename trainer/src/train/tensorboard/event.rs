//! The few protocol buffer messages of an event file, in their wire format.

/// Wire types: a varint, eight bytes, bytes with their length, four bytes.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// A message under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn uint(mut self, field: u64, value: u64) -> Self {
        self.key(field, VARINT);
        self.varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, FIXED64);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, FIXED32);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.key(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }
}

/// `tensorflow.Event`.
#[derive(Debug)]
pub(super) struct Event(Message);

impl Event {
    /// `wall_time` = 1, `step` = 2.
    fn begin(wall_time: f64, step: u64) -> Message {
        Message::default().double(1, wall_time).uint(2, step)
    }

    /// The first record of a file: `file_version` = 3.
    pub(super) fn version(wall_time: f64) -> Event {
        Event(Event::begin(wall_time, 0).bytes(3, b"brain.Event:2"))
    }

    /// `session_log` = 7 with `status` = 1: START (1). `step` is the first of the session; what is of it or later is out of date.
    pub(super) fn start(wall_time: f64, step: u64) -> Event {
        let status = Message::default().uint(1, 1);
        Event(Event::begin(wall_time, step).bytes(7, &status.0))
    }

    /// `summary` = 5 with a `value` = 1 for each: `tag` = 1, `simple_value` = 2.
    pub(super) fn scalars<'a>(wall_time: f64, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Event {
        let mut summary = Message::default();
        for (tag, value) in values {
            let value = Message::default().bytes(1, tag.as_bytes()).float(2, value as f32);
            summary = summary.bytes(1, &value.0);
        }
        Event(Event::begin(wall_time, step).bytes(5, &summary.0))
    }

    /// The same with an `image` = 4: `height` = 1, `width` = 2, `colorspace` = 3 (RGB), `encoded_image_string` = 4.
    pub(super) fn image(wall_time: f64, step: u64, tag: &str, [width, height]: [u32; 2], png: &[u8]) -> Event {
        let image = Message::default().uint(1, height.into()).uint(2, width.into()).uint(3, 3).bytes(4, png);
        let value = Message::default().bytes(1, tag.as_bytes()).bytes(4, &image.0);
        let summary = Message::default().bytes(1, &value.0);
        Event(Event::begin(wall_time, step).bytes(5, &summary.0))
    }

    pub(super) fn encode(&self) -> &[u8] {
        &self.0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that TensorBoard's own protocol buffers make of the same event.
    #[test]
    fn a_start_is_tensorboards() {
        let expected = [0x09, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F, 0x10, 5, 0x3A, 2, 8, 1];
        assert_eq!(Event::start(1.0, 5).encode(), expected);
    }
}
