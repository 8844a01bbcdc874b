/* SPDX-License-Identifier: GPL-2.0 */
/* Headers which `bindgen` turns into the `persistent_data` crate's bindings. */
#include <linux/crc32.h>
