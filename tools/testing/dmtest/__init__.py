# SPDX-License-Identifier: GPL-2.0
"""Library of the functional tests: device-mapper devices, pools and their contents, from inside a test VM."""
