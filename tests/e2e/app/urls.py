# SPDX-License-Identifier: MIT
"""Each public function of views is a page of its own name."""

import inspect

from django.urls import path

import views

urlpatterns = [path(name, function) for name, function in vars(views).items()
               if inspect.isfunction(function) and function.__module__ == 'views' and not name.startswith('_')
               and next(iter(inspect.signature(function).parameters), None) == 'request']
