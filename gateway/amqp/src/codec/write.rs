//! Writes AMQP values (part 1) to the end of a `Vec<u8>` in the shortest form.
