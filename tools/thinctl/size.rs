// SPDX-License-Identifier: GPL-2.0

//! Numbers of bytes as people write them.

use std::num::NonZeroU64;

use parse_size::Config;

/// The number of bytes that a text like `64K`, `10M` or `1.5GiB` stands for, with prefixes of 1024 each, as lvm2 has them.
///
/// It can be given to clap.
pub fn parse(text: &str) -> Result<u64, String> {
    Config::new()
        .with_binary()
        .parse_size(text)
        .map_err(|e| match e {
            parse_size::Error::PosOverflow => format!("there are no more than {} bytes", u64::MAX),
            _ => "it must be a number of bytes like 512, 64K, 10M or 1.5G, where K is 1024"
                .to_owned(),
        })
}

/// The same without 0, for a rate in bytes each second.
pub fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    NonZeroU64::new(parse(text)?).ok_or_else(|| "nothing would ever be sent".into())
}

#[cfg(test)]
mod tests {
    use super::{
        parse,
        parse_rate, //
    };

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("10M", 10 << 20),
            ("10 MB", 10 << 20),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "x", "-1", "1.2.3", "10Q", "NaN"] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("like 512, 64K"), "{text}: {error}");
        }
        for text in ["18446744073709551616", "20000000T"] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("no more than"), "{text}: {error}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(parse_rate("10M").unwrap().get(), 10 << 20);
        assert_eq!(parse_rate("10M/s").unwrap().get(), 10 << 20);
        assert!(parse_rate("0").is_err());
        assert!(parse_rate("/s").is_err());
    }
}
