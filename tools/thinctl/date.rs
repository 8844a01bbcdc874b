// SPDX-License-Identifier: GPL-2.0

//! Moments as people write them.

/// The date and the time in UTC of so many seconds after the beginning of 1970.
pub fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (mut year, mut left) = (1970u64, days);
    // Whole periods of 400 years are alike.
    year = year.saturating_add(left / 146_097 * 400);
    left %= 146_097;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!(
        "{year}-{month:02}-{:02} {:02}:{:02}:{:02}",
        left + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn moments() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (1_796_082_109, "2026-11-30 23:41:49"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (13_569_465_600, "2400-01-01 00:00:00"),
        ] {
            assert_eq!(utc(seconds), text);
        }
        assert!(utc(u64::MAX).ends_with(":15"));
    }
}
