// SPDX-License-Identifier: GPL-2.0

//! No more than so many bytes each second.

use std::{
    io::{
        self,
        Write, //
    },
    num::NonZeroU64,
    thread,
    time::{
        Duration,
        Instant, //
    },
};

/// How long what was not used can be made up for.
const BURST: Duration = Duration::from_millis(100);

/// Says how long to wait: a bucket that fills at a rate, and is full after [`BURST`].
#[derive(Clone, Debug)]
struct Bucket {
    rate: NonZeroU64,
    /// When it was empty, or will be filled again as far as that. It is full at [`BURST`] after.
    empty: Duration,
}

impl Bucket {
    /// Takes bytes out; gives how long it takes until they are there.
    fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        let nanoseconds =
            u128::from(bytes).saturating_mul(1_000_000_000) / u128::from(self.rate.get());
        let cost = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.empty = self
            .empty
            .max(now.saturating_sub(BURST))
            .saturating_add(cost);
        self.empty.saturating_sub(now)
    }
}

/// Lets no more than so many bytes pass each second.
#[derive(Clone, Debug)]
pub struct Rate {
    bucket: Bucket,
    began: Instant,
}

impl Rate {
    /// A limit in bytes each second.
    pub fn new(rate: NonZeroU64) -> Self {
        Self {
            bucket: Bucket { rate, empty: BURST },
            began: Instant::now(),
        }
    }

    /// Waits until this many bytes may pass.
    pub fn wait(&mut self, bytes: u64) {
        let now = self.began.elapsed().saturating_add(BURST);
        let wait = self.bucket.take(bytes, now);
        if !wait.is_zero() {
            thread::sleep(wait);
        }
    }

    /// How many bytes take no longer than a moment.
    fn piece(&self) -> usize {
        let bytes = self.bucket.rate.get() / 10;
        usize::try_from(bytes).map_or(1 << 20, |bytes| bytes.clamp(1, 1 << 20))
    }
}

/// Writes no faster than a rate, if there is one.
pub struct Limited<W> {
    w: W,
    rate: Option<Rate>,
}

impl<W> Limited<W> {
    /// A limit in bytes each second.
    pub fn new(w: W, rate: Option<NonZeroU64>) -> Self {
        Self {
            w,
            rate: rate.map(Rate::new),
        }
    }
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        if let Some(rate) = &mut self.rate {
            // Only for a moment, so that a signal is seen soon.
            bytes = bytes.get(..rate.piece()).unwrap_or(bytes);
            rate.wait(bytes.len() as u64);
        }
        self.w.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.w.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        num::NonZeroU64,
        time::{
            Duration,
            Instant, //
        },
    };

    use proptest::{
        collection::vec,
        prelude::*, //
    };

    use super::{
        Bucket,
        Limited,
        BURST, //
    };

    proptest! {
        /// In any time, no more passes than the rate and one burst; and who always has something to send is not slowed down
        /// below the rate.
        #[test]
        fn the_rate_is_kept(
            rate in 1_u64..1 << 32,
            sends in vec((0_u64..1 << 20, prop_oneof![Just(0), 0_u64..2_000_000_000]), 1..50),
        ) {
            let rate = NonZeroU64::new(rate).unwrap();
            let mut bucket = Bucket { rate, empty: BURST };
            let mut now = BURST;
            let mut passed = Vec::new();
            for (bytes, idle) in sends {
                let before = now + Duration::from_nanos(idle);
                now = before + bucket.take(bytes, before);
                passed.push((before, now, bytes));
            }
            let seconds = |bytes: u64| bytes as f64 / rate.get() as f64;
            for (i, (_, _, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                let first = passed[i].0;
                for (_, end, bytes) in &passed[i..] {
                    sum += bytes;
                    let took = (*end - first).as_secs_f64();
                    prop_assert!(took + BURST.as_secs_f64() + 1e-6 >= seconds(sum));
                }
            }
            let busy = passed.windows(2).all(|pair| pair[0].1 == pair[1].0);
            if busy && passed[0].0 == BURST {
                let sum = passed.iter().map(|(_, _, bytes)| bytes).sum();
                prop_assert!((now - BURST).as_secs_f64() <= seconds(sum) + 1e-6);
            }
        }
    }

    #[test]
    fn writing_takes_its_time() {
        let mut written = Vec::new();
        let began = Instant::now();
        let rate = NonZeroU64::new(1 << 20);
        let bytes: Vec<u8> = (0..1 << 19).map(|n: u32| n as u8).collect();
        Limited::new(&mut written, rate).write_all(&bytes).unwrap();
        let took = began.elapsed().as_secs_f64();
        assert!(took > 0.39, "{took}");
        assert_eq!(written, bytes);
        Limited::new(&mut written, None).write_all(&bytes).unwrap();
        assert_eq!(written.len(), 1 << 20);
    }
}
