//! The dates that templates write.

use minijinja::{Error, ErrorKind};
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const SECONDS_PER_DAY: u64 = 86_400;

/// `datetime.strftime` of Python for a time in UTC, with English names.
pub(super) fn strftime(now: SystemTime, format: &str) -> Result<String, Error> {
    let time = UtcTime::new(now);
    let mut text = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let directive = chars.next();
        let padded = directive != Some('-');
        let directive = if padded { directive } else { chars.next() };
        let written = match directive {
            Some(directive) => time.write(&mut text, directive, padded),
            None => None,
        };
        if written.is_none() {
            let message = format!("strftime_now does not know the format `{format}`");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(text)
}

struct UtcTime {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From Sunday.
    weekday: u64,
    second_of_day: u64,
}

impl UtcTime {
    /// Times before 1970 count as its first second.
    fn new(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        let (days, second_of_day) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
        let (mut year, mut day_of_year) = (1970, days);
        while day_of_year >= days_in_year(year) {
            day_of_year -= days_in_year(year);
            year += 1;
        }
        let (mut month, mut day) = (1, day_of_year);
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        // The first of January 1970 was a Thursday.
        Self { year, month, day: day + 1, day_of_year: day_of_year + 1, weekday: (days + 4) % 7, second_of_day }
    }

    fn write(&self, text: &mut String, directive: char, padded: bool) -> Option<()> {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let (number, width) = match directive {
            'Y' => (self.year, 4),
            'y' => (self.year % 100, 2),
            'm' => (self.month, 2),
            'd' => (self.day, 2),
            'j' => (self.day_of_year, 3),
            'H' => (hour, 2),
            'I' => ((hour + 11) % 12 + 1, 2),
            'M' => (minute, 2),
            'S' => (second, 2),
            _ => {
                text.push_str(match directive {
                    'B' => MONTHS.get(self.month as usize - 1)?,
                    'b' => MONTHS.get(self.month as usize - 1)?.get(..3)?,
                    'A' => DAYS.get(self.weekday as usize)?,
                    'a' => DAYS.get(self.weekday as usize)?.get(..3)?,
                    'p' if hour < 12 => "AM",
                    'p' => "PM",
                    '%' => "%",
                    _ => return None,
                });
                return Some(());
            }
        };
        let width = if padded { width } else { 0 };
        write!(text, "{number:0width$}").ok()
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}
